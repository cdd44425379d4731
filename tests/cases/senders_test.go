package cases

// This file contains a case for each kind of legitimate sender. None of the senders has sent mail
// before.

import (
	"os"
	"strings"
	"testing"

	"scanwatch/tests/simulate"
)

// forms returns the hosts and notes in the table of senders.
func forms(t *testing.T) (hosts []simulate.Host, notes []string) {
	text, err := os.ReadFile("../month/testdata/senders.tsv")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := append(strings.Split(strings.TrimSpace(line), "\t"), "")
		if line[0] == '#' || f[0] == "rdns" {
			continue
		}
		addr := f[4]
		if addr == "" {
			addr = at("198.18.%d.25", len(hosts))
		}
		h := greets(addr, f[0], f[2])
		h.FCrDNS = f[1]
		if f[0] == "-" {
			h.RDNS = ""
		}
		if f[2] == "=" {
			h.Helo = h.RDNS
		}
		hosts, notes = append(hosts, h), append(notes, f[3])
	}
	return hosts, notes
}

// TestSenders checks the first message of each kind of sender. The tight preset may reject a sender
// only if the sender's note gives a reason.
func TestSenders(t *testing.T) {
	hosts, notes := forms(t)
	var list []Case
	for i, h := range hosts {
		list = append(list, Case{Name: h.RDNS + " greets " + h.Helo, Play: func(s *Server) {
			s.Earlier()
			c := s.Deliver(h, "someone@sender.example", "alice")
			s.NotBanned(c)
			if s.Preset == "tight" && strings.Contains(notes[i], "tight:") {
				return
			}
			s.Accepted(c)
			s.Delivered(c)
			s.Check(!c.Junked(), "%s is marked as junk", who(c))
		}})
	}
	list = append(list, Case{Name: "all, in turn", Play: func(s *Server) {
		s.Earlier()
		for i, h := range hosts {
			c := s.Deliver(h, "someone@sender.example", "alice")
			s.Wait(minute)
			if s.Preset == "standard" || !strings.Contains(notes[i], "tight:") {
				s.Accepted(c)
			}
			s.NotBanned(c)
		}
	}})
	Run(t, list)
}
