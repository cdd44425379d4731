package filter_test

import (
	"bytes"
	"encoding/base64"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var lists = func() *lookup.Lists {
	l, err := lookup.Builtin()
	if err != nil {
		panic(err)
	}
	return l
}()

const streams = "../tests/streams"

// play passes a stream to a new pipeline, and returns the records in the order of the starts of
// their sessions.
func play(t testing.TB, in []byte) (records []*store.Record, log []string) {
	t.Helper()
	m := memory.New()
	m.UseKey([16]byte{1}) // with a random key, the hashes of two users are sometimes equal
	table := simulate.NewFilter(filter.Options{
		Memory: m,
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), bytes.Clone(value))
			if err != nil {
				t.Errorf("record: %v", err)
			}
			records = append(records, &r)
		},
		Log:      func(line []byte) { log = append(log, string(line)) },
		Lists:    func() *lookup.Lists { return lists },
		OwnAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.25")},
	})
	var out bytes.Buffer
	o := smtpd.Options{Reports: smtpd.Reports, Log: func(s string) { t.Errorf("logged: %s", s) }}
	if err := smtpd.Serve(bytes.NewReader(in), &out, table, o); err != nil {
		t.Fatal(err)
	}
	table.Stop()
	if n := table.Open(); n != 0 {
		t.Errorf("%d sessions left", n)
	}
	slices.SortStableFunc(records, func(a, b *store.Record) int { return a.Start.Compare(b.Start) })
	return records, log
}

// render formats records as text. render omits fields that differ between runs: ids, times, ports
// of clients, ciphers, and sizes that depend on one of these.
func render(t testing.TB, records []*store.Record) string {
	var b strings.Builder
	for i, r := range records {
		fcrdns := r.FCrDNS.String()
		if string(r.RDNS) == "localhost" {
			fcrdns = "-" // depends on the host on which the stream was recorded
		}
		fmt.Fprintf(&b, "%d: src=%v dst=%v rdns=%q fcrdns=%s local=%v ending=%v counts=%s", i+1, r.Src.Addr(), r.Dst, r.RDNS, fcrdns, r.Local, r.Ending, zero.ReplaceAllString(fmt.Sprintf("%+v", r.Counts), ""))
		if r.Omitted > 0 {
			fmt.Fprintf(&b, " omitted=%d", r.Omitted)
		}
		b.WriteByte('\n')
		last := time.Duration(0)
		err := r.Steps(func(s *store.Step) bool {
			if s.At < last {
				t.Errorf("session %d: time goes back from %v to %v", i+1, last, s.At)
			}
			last = s.At
			if s.Kind == store.KindTLS {
				s.Text, _, _ = bytes.Cut(s.Text, []byte{':'})
			}
			fmt.Fprintf(&b, "\t%s", kinds[s.Kind])
			switch s.Kind {
			case store.KindFilter:
				s.Arg, s.Text = []byte(s.PhaseName()), []byte(s.DecisionName())
			case store.KindTag:
				s.Arg = []byte(s.PhaseName())
			case store.KindVerdict:
				s.Arg = fmt.Appendf(nil, "%v %v %v", s.Phase, s.Decision, s.Enforced)
			}
			for _, f := range [][]byte{s.Arg, s.Text} { // in a finding, these are the proof and the evidence
				if len(f) > 0 {
					fmt.Fprintf(&b, " %q", f)
				}
			}
			if s.Kind == store.KindMail && len(s.Text) == 0 {
				b.WriteString(` ""`)
			}
			if s.Result != 0 {
				fmt.Fprintf(&b, " %v", s.Result)
			}
			if s.Code != 0 {
				fmt.Fprintf(&b, " %d", s.Code)
			}
			for _, f := range [][]byte{s.Reply, s.Org, s.By, s.Match, s.Confidence} {
				if len(f) > 0 {
					fmt.Fprintf(&b, " %q", f)
				}
			}
			b.WriteByte('\n')
			return true
		})
		if err != nil {
			t.Error(err)
		}
	}
	return b.String()
}

var zero = regexp.MustCompile(`\w+:0\b ?`)

var kinds = []string{"none", "greeting", "helo", "tls", "auth", "mail", "rcpt", "data", "commit", "rollback", "command", "input",
	"timeout", "quit", "finding", "verdict", "filter", "tag"}

var loopback = regexp.MustCompile(`(?m)^(report\|[^|]*\|[^|]*\|smtp-in\|link-connect\|[^|]*\|[^|]*\|[^|]*\|)127\.0\.0\.1:`)

// TestStreams processes all recorded streams and compares the records with golden files. If the
// facts from an older version of smtpd are different, there is a separate golden file for it.
func TestStreams(t *testing.T) {
	names, err := filepath.Glob(streams + "/7.9/*.in")
	if err != nil || len(names) < 50 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	older, _ := filepath.Glob(streams + "/[67].[68]/*.in")
	for _, name := range older {
		if _, err := os.Stat(filepath.Join(streams, "7.9", filepath.Base(name))); err != nil {
			names = append(names, name) // only this version has this stream
		}
	}
	for _, name := range names {
		scenario := strings.TrimSuffix(filepath.Base(name), ".in")
		t.Run(scenario, func(t *testing.T) {
			newest := ""
			for _, version := range []string{"7.9", "7.6", "6.8"} {
				in, err := os.ReadFile(filepath.Join(streams, version, scenario+".in"))
				if os.IsNotExist(err) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				// The recorded clients ran on the same host as the server. Greetings from this host
				// are weaker evidence. Therefore, replace the address by that of an unknown client.
				records, _ := play(t, loopback.ReplaceAll(in, []byte("${1}203.0.113.9:")))
				got := render(t, records)
				golden := filepath.Join("testdata", scenario+".golden")
				if newest != "" && got != newest {
					golden = filepath.Join("testdata", scenario+"@"+version+".golden")
				}
				if *update {
					if newest == "" || got != newest {
						if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
							t.Fatal(err)
						}
					}
				} else if want, err := os.ReadFile(golden); err != nil || string(want) != got {
					t.Errorf("%s: differs from %s (%v); run with -update and look\ngot:\n%s", version, golden, err, got)
				}
				if newest == "" {
					newest = got
				}
			}
		})
	}
}

// TestReplayIsDeterministic checks that the same stream leads to the same bytes when it is played
// twice.
func TestReplayIsDeterministic(t *testing.T) {
	in, err := os.ReadFile(streams + "/7.9/concurrent-200.in")
	if err != nil {
		t.Fatal(err)
	}
	first, log1 := play(t, in)
	second, log2 := play(t, in)
	if render(t, first) != render(t, second) || !slices.Equal(log1, log2) {
		t.Error("the same stream gave other records or lines")
	}
	if len(first) != 200 {
		t.Errorf("%d records of 200 sessions", len(first))
	}
}

// secrets contains the passwords in the streams with AUTH as the clients have sent them.
var secrets = []string{"cleartext-guess", "s3cret", "secret", "hunter2", "wrong", "passw"}

// TestNoPasswords checks that no record or log line contains text that follows AUTH, either plain
// or in base64. User names that smtpd has reported may remain.
func TestNoPasswords(t *testing.T) {
	word := regexp.MustCompile(`[A-Za-z0-9+/]{12,}={0,2}`)
	for _, version := range []string{"6.8", "7.6", "7.9"} {
		for _, name := range []string{"auth-on-port-25", "auth-submission", "auth-phase-decisions"} {
			in, err := os.ReadFile(filepath.Join(streams, version, name+".in"))
			if err != nil {
				t.Fatal(err)
			}
			var hidden []string
			for _, line := range strings.Split(string(in), "\n") {
				f := strings.SplitN(line, "|", 7)
				if len(f) == 7 && f[4] == "protocol-client" {
					for _, w := range word.FindAllString(f[6], -1) {
						if plain, err := base64.StdEncoding.DecodeString(w); err == nil {
							hidden = append(hidden, w)
							for _, part := range strings.Split(string(plain), "\x00") {
								if len(part) > 6 {
									hidden = append(hidden, part)
								}
							}
						}
					}
				}
			}
			if name == "auth-on-port-25" && len(hidden) < 4 {
				t.Fatalf("%s/%s: found only %q to look for", version, name, hidden)
			}
			records, log := play(t, in)
			seen := render(t, records) + strings.Join(log, "\n")
			for _, h := range append(hidden, secrets...) {
				for _, line := range strings.Split(seen, "\n") {
					if strings.Contains(line, h) && !strings.HasPrefix(line, "\tauth ") && !strings.Contains(line, "evidence=auth-failure") &&
						!strings.Contains(line, `"auth-failure" "auth"`) {
						t.Errorf("%s/%s: %q is in %q", version, name, h, line)
					}
				}
			}
		}
	}
}
