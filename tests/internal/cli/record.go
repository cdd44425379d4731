//go:build linux

package cli

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// A Record is a record printed by dump, with the fields that tests need.
type Record struct {
	Sum     int `json:"sessions"` // number of sessions in an aggregate
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

// Evidence returns the tokens of all findings. It omits early-talker, which depends on the
// machine's speed.
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

// Sessions returns the number of sessions that the records cover.
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

// ParseAddr parses an address in any notation. It converts IPv4-mapped addresses to IPv4.
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
