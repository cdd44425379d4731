package text

import "time"

// A Time is a time in JSON output.
type Time struct{ time.Time }

// TimeLayout is the layout of a Time: RFC 3339 in UTC with six decimal places.
// The length is fixed, so times sort as text.
const TimeLayout = "2006-01-02T15:04:05.000000Z"

// MarshalJSON encodes t in TimeLayout.
func (t Time) MarshalJSON() ([]byte, error) {
	return t.UTC().AppendFormat(nil, `"`+TimeLayout+`"`), nil
}

// At returns t for JSON output.
func At(t time.Time) Time { return Time{t} }
