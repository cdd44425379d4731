//go:build linux

package cli

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A Record is a record in the output of dump, with the fields that the tests need.
type Record struct {
	Sum     int `json:"sessions"` // number of sessions of an aggregate
	Session string
	Start   time.Time
	Src     string
	RDNS    string
	FCrDNS  string
	Local   bool
	Ending  string
	Counts  map[string]int
	Helo    []struct{ Verb, Name, Result string }
	Auth    []struct{ User, Result string }

	Transactions []struct {
		Sender     string
		Recipients []struct{ Address, Result string }
	}
	Findings []Finding
}

type Finding struct{ Evidence, Organisation, By, Confidence string }

// Evidence returns the tokens of all findings. The token early-talker is omitted, because
// it depends on the speed of the machine.
func (r *Record) Evidence() (tokens []string) {
	for _, f := range r.Findings {
		if f.Evidence != "early-talker" {
			tokens = append(tokens, f.Evidence)
		}
	}
	return tokens
}

func (r *Record) RecipientCount() (n int) {
	for _, tx := range r.Transactions {
		n += len(tx.Recipients)
	}
	return n
}

func Dump(t *testing.T, dir string, args ...string) (records []Record) {
	t.Helper()
	for line := range strings.Lines(Run(t, dir, append([]string{"dump"}, args...)...)) {
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("dump: %v in %s", err, line)
		}
		records = append(records, r)
	}
	return records
}

// Sessions returns the number of sessions in the records.
func Sessions(records []Record) (n int) {
	for i := range records {
		n += max(records[i].Sum, 1)
	}
	return n
}

// Banned returns the networks with active bans.
func Banned(t *testing.T, dir string) (list []netip.Prefix) {
	t.Helper()
	for line := range strings.Lines(Run(t, dir, "bans", "--json")) {
		var b struct{ Prefix netip.Prefix }
		Decode(t, line, &b)
		list = append(list, b.Prefix)
	}
	return list
}

// ParseAddr parses an address in any notation. An IPv4-mapped address is returned as an
// IPv4 address.
func ParseAddr(s string) netip.Addr {
	a, _ := netip.ParseAddr(strings.Trim(s, "[]"))
	return a.Unmap()
}

func FromAddr(records []Record, from string) (found []Record) {
	for _, r := range records {
		if ParseAddr(r.Src) == ParseAddr(from) {
			found = append(found, r)
		}
	}
	return found
}
