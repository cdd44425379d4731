package events

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// Decode reads a line that a Stream or a Watcher has written. For left-out, n is
// how many events are missing. A value that was no UTF-8 comes back with U+FFFD
// in it.
func Decode(line []byte) (e Event, n uint64, err error) {
	var j struct {
		Event, Session, Src, Evidence, Confidence, Org, By, Match, Proof string
		RDNS, FCrDNS, Helo, Rule, Phase, Decision, Would, Tag            string
		Prefix, Reason                                                   string
		Time, Until                                                      time.Time
		Count                                                            uint64
	}
	if err := json.Unmarshal(line, &j); err != nil {
		return e, 0, fmt.Errorf("read an event: %w", err)
	}
	e = Event{
		Event: j.Event, Time: j.Time, Evidence: j.Evidence, Confidence: j.Confidence, Org: j.Org, By: j.By, Match: j.Match, Proof: j.Proof,
		RDNS: []byte(j.RDNS), FCrDNS: j.FCrDNS, Helo: []byte(j.Helo), Rule: j.Rule, Phase: j.Phase, Decision: j.Decision, Would: j.Would,
		Tag: j.Tag, Until: j.Until, Prefix: j.Prefix, Reason: j.Reason,
	}
	if j.Session != "" {
		if e.Session, err = strconv.ParseUint(j.Session, 16, 64); err != nil {
			return Event{}, 0, fmt.Errorf("read an event: session: %w", err)
		}
	}
	if j.Src != "" && j.Src != "local" {
		if e.Src, err = netip.ParseAddr(j.Src); err != nil {
			return Event{}, 0, fmt.Errorf("read an event: src: %w", err)
		}
	}
	return e, j.Count, nil
}
