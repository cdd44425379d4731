package month_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"testing"

	"scanwatch/tests/month"
)

var write = flag.String("tables", "", "write the tables to this file")

var presets = []string{"open", "standard", "tight"}

// play plays a month with each preset, and returns the tables and the broken promises.
func play(t *testing.T, seed uint64) (tables string, failures []string) {
	t.Helper()
	var worlds []*month.World
	var b bytes.Buffer
	for _, preset := range presets {
		w, err := month.New(preset, seed)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Play(); err != nil {
			t.Fatal(err)
		}
		worlds = append(worlds, w)
		count(t, preset, w)
		failures = append(failures, w.Failures(preset)...)
		fmt.Fprintf(&b, "seed %d, %s: %d sessions\n", seed, preset, w.Sessions())
		w.WriteKinds(&b, preset != "open")
		fmt.Fprintln(&b)
	}
	same(t, worlds)
	fmt.Fprintf(&b, "seed %d, attackers: total (most in an hour, in a day)\n", seed)
	month.WriteAttacks(&b, presets, worlds)
	return b.String(), failures
}

// judge logs the tables and reports the failures.
func judge(t *testing.T, tables string, failures []string) {
	t.Helper()
	t.Log("\n" + tables)
	if *write != "" {
		f, err := os.OpenFile(*write, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(tables + "\n"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range failures {
		t.Error(f)
	}
}

// TestMonth checks the policies' promises over one month.
func TestMonth(t *testing.T) {
	tables, failures := play(t, 1)
	judge(t, tables, failures)
}

// count compares the actors' counts with the filter's records. The counts of each kind must also be
// consistent.
func count(t *testing.T, preset string, w *month.World) {
	t.Helper()
	sessions, mails, logins := 0, 0, 0
	for _, k := range w.Kinds {
		if k.Sessions == 0 && k.Sent == 0 {
			t.Errorf("%s: no session of %s", preset, k.Name)
		}
		if k.Sent != k.AtOnce+k.Delayed+k.Lost {
			t.Errorf("%s: %s: %d messages, %d at once, %d delayed, %d lost", preset, k.Name, k.Sent, k.AtOnce, k.Delayed, k.Lost)
		}
		if preset == "open" && k.Lost+k.Refused+k.Bans+k.Turned > 0 {
			t.Errorf("open: %s: %d lost, %d logins rejected, %d bans, %d sessions rejected", k.Name, k.Lost, k.Refused, k.Bans, k.Turned)
		}
		sessions, mails, logins = sessions+k.Sessions, mails+k.Accepted, logins+k.LoggedIn
	}
	for _, a := range w.Attacks {
		sessions, mails, logins = sessions+a.Sessions, mails+a.Sent.Total, logins+a.LoggedIn
		if a.Sessions == 0 {
			t.Errorf("%s: no session of %s", preset, a.Name)
		}
	}
	r := w.Records
	if r.Sessions != w.Sessions() || sessions > r.Sessions || r.Sessions-sessions > 100 {
		t.Errorf("%s: %d sessions of actors, %d of the server, %d in records", preset, sessions, w.Sessions(), r.Sessions)
	}
	if r.Mails != mails || r.AuthPass != logins {
		t.Errorf("%s: %d messages and %d logins of actors; records have %d and %d", preset, mails, logins, r.Mails, r.AuthPass)
	}
}

// same checks that all worlds have the same plan, regardless of the policy.
func same(t *testing.T, worlds []*month.World) {
	t.Helper()
	for i, k := range worlds[0].Kinds {
		for j, w := range worlds {
			if o := w.Kinds[i]; o.Sent != k.Sent || o.Nowhere != k.Nowhere || o.Logins != k.Logins {
				t.Errorf("%s: %s has %d messages, %d to unknown recipients, %d logins; under open %d, %d, %d",
					presets[j], k.Name, o.Sent, o.Nowhere, o.Logins, k.Sent, k.Nowhere, k.Logins)
			}
		}
	}
}

// TestForms checks that the month contains all rows of senders.tsv.
func TestForms(t *testing.T) {
	if n := month.Forms(); n < 140 {
		t.Errorf("%d forms of senders", n)
	}
}
