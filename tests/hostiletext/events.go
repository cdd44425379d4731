package hostiletext

import (
	"time"

	"scanwatch/filter/events"
)

// Events returns events with hostile text in every field.
func Events(at time.Time) (all []events.Event) {
	for i, text := range Texts() {
		s := text.Text
		for _, word := range []string{"finding", "verdict", "ban", "tag", s} {
			all = append(all, events.Event{Event: word, Time: at, Session: 7, Src: Addr(i), Evidence: s, Confidence: s, Org: s, By: s, Match: s, Proof: s,
				RDNS: []byte(s), FCrDNS: s, Helo: []byte(s), Rule: s, Phase: s, Decision: s, Would: s, Tag: s, Prefix: s, Reason: s, Until: at})
		}
	}
	return all
}
