package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"scanwatch/filter"
	"scanwatch/filter/session"
)

// allPhases are those that a policy can ask for.
var allPhases = []filter.ID{filter.PhaseConnect, filter.PhaseHelo, filter.PhaseEhlo, filter.PhaseMailFrom,
	filter.PhaseRcptTo, filter.PhaseData, filter.PhaseCommit}

// outline is the events and requests of a session in a stream, in their order,
// without what the filter does not register, and with one line for each reply.
func outline(stream, id string) (list []string) {
	last := ""
	for line := range strings.Lines(stream) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		if len(f) < 6 || f[5] != id {
			continue
		}
		what := f[0] + " " + f[4]
		known := func(ids []filter.ID) bool {
			return slices.ContainsFunc(ids, func(id filter.ID) bool { return id.String() == f[4] })
		}
		if f[0] == "report" && !known(session.Reports) || f[0] == "filter" && !known(allPhases) ||
			f[4] == "filter-response" && f[6] == "quit" || f[4] == "protocol-server" && last == what {
			continue
		}
		last = what
		switch f[4] {
		case "protocol-client":
			what += " " + strings.Fields(f[6])[0]
		case "protocol-server":
			what += " " + f[6][:3]
		case "filter-response":
			what += " " + strings.Join(f[6:min(len(f), 8)], " ")
		case "tx-mail", "tx-rcpt", "tx-data":
			what += " " + f[7]
		}
		list = append(list, what)
	}
	return list
}

// TestInventedAsRecorded: what is told of an invented session is what smtpd told
// of a real one that went the same way.
func TestInventedAsRecorded(t *testing.T) {
	const refused, gone = "reject-550-each-phase", "disconnect-550-each-phase"
	greet, send := step{"helo", "a"}, step{"mail-from", "b"}
	for _, c := range []struct {
		name, stream    string
		id              string
		phase, decision string // what the first request of a phase is answered
		steps           []step
	}{
		{"a message", "ehlo-delivery", "ced64b0c8bd7173c", "", "", []step{greet, send, {"rcpt", "c"}}},
		{"a sender is refused, the next is not", refused, "1538a5230364350f", "mail-from", "reject",
			[]step{greet, send, {"rcpt", "c"}, {"mail-from", "d"}}},
		{"disconnected at the greeting", gone, "788ea85a5948922e", "ehlo", "disconnect", []step{greet, send}},
		{"disconnected at a recipient", gone, "788ea85d8af1e50a", "rcpt-to", "disconnect", []step{greet, send, {"rcpt", "c"}}},
		{"disconnected at data", gone, "788ea85e0b152c0e", "data", "disconnect", []step{greet, send, {"rcpt", "c"}}},
		{"disconnected at the end of the message", gone, "788ea85f837157cc", "commit", "disconnect", []step{greet, send, {"rcpt", "c"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			recorded, err := os.ReadFile(filepath.Join("../../tests/streams/7.9", c.stream+".in"))
			if err != nil {
				t.Fatal(err)
			}
			v, err := newInvention("192.0.2.1", "192.0.2.25:25", "", "", c.steps)
			if err != nil {
				t.Fatal(err)
			}
			v.asked = allPhases
			var told strings.Builder
			last := ""
			v.answer = func() (string, string) {
				if strings.Split(last, "|")[4] != c.phase {
					return "proceed", ""
				}
				c.phase = ""
				return c.decision, "550 5.7.1 no"
			}
			for last = range v.lines() {
				told.WriteString(last)
			}
			got, want := outline(told.String(), invented), outline(string(recorded), c.id)
			if len(want) == 0 || !slices.Equal(got, want) {
				t.Errorf("invented:\n%s\nrecorded:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}
