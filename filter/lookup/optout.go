package lookup

import (
	_ "embed"
	"fmt"
	"strings"
	"time"
)

//go:embed intel/optout.tsv
var optOutTSV string

// Values of OptOut.Kind.
const (
	OptOutMail = "mail" // Contact is a mail address for requests
	OptOutWeb  = "web"  // Contact is a web page that explains or accepts requests
	OptOutPage = "page" // Contact is the organisation's page about its scans, which may not mention an opt-out
)

// An OptOut is a way to ask a scanning organisation to stop its scans.
type OptOut struct {
	Org     string // organisation, as in Row.Org
	Kind    string // OptOutMail, OptOutWeb or OptOutPage
	Contact string // address or URL
	Source  string // URL where this information was found
	Date    string // day of the latest visit to the source, such as 2006-01-02
	Note    string // caveat; may be empty
}

// OptOuts returns the opt-outs in the shipped list by organisation. OptOuts returns an error only
// if the embedded list is invalid.
func OptOuts() (map[string]OptOut, error) {
	const header = "org\tkind\tcontact\tsource\tdate\tnote"
	first, text, _ := strings.Cut(optOutTSV, "\n")
	if first != header {
		return nil, fmt.Errorf("optout.tsv:1: the header is not %q", header)
	}
	all := make(map[string]OptOut)
	for number := 2; text != ""; number++ {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		f := strings.Split(line, "\t")
		if len(f) != 6 {
			return nil, fmt.Errorf("optout.tsv:%d: %d columns instead of 6", number, len(f))
		}
		o := OptOut{f[0], f[1], f[2], f[3], f[4], f[5]}
		if o.Kind != OptOutMail && o.Kind != OptOutWeb && o.Kind != OptOutPage {
			return nil, fmt.Errorf("optout.tsv:%d: kind %q is not mail, web or page", number, o.Kind)
		}
		if _, err := time.Parse(time.DateOnly, o.Date); err != nil {
			return nil, fmt.Errorf("optout.tsv:%d: %w", number, err)
		}
		if _, twice := all[o.Org]; twice {
			return nil, fmt.Errorf("optout.tsv:%d: a second row for %s", number, o.Org)
		}
		all[o.Org] = o
	}
	return all, nil
}
