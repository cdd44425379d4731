package trial

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/rules"
)

func options(t *testing.T, policy string, to *[]*Session) Options {
	t.Helper()
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := rules.Parse("test.conf", func(string) ([]byte, error) { return []byte(policy), nil })
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return Options{Settings: &filter.Settings{Policy: p.InMode(rules.Enforce)}, Lists: lists, Done: func(s *Session) error {
		*to = append(*to, s)
		return nil
	}}
}

// everyPhase is a policy with a rule that is evaluated in every phase but never
// matches.
const everyPhase = "rule all phase { connect, helo, mail-from, rcpt-to, data, commit } match src 203.0.113.250 disconnect\n"

// outline returns a session's phases with their decisions.
func outline(s *Session) (list []string) {
	for _, r := range s.Phases {
		list = append(list, r.Phase+" "+r.Decision)
	}
	return list
}

var (
	greet = Step{"helo", "mail.example.net"}
	send  = Step{"mail-from", "a@example.net"}
	rcpt  = Step{"rcpt", "bob@example.org"}
)

// TestScript checks which requests a server makes in a scripted session. No
// steps may follow a rejection.
func TestScript(t *testing.T) {
	message := []string{"connect proceed", "helo proceed", "mail-from proceed", "rcpt-to proceed", "data proceed", "commit proceed"}
	for _, c := range []struct {
		name, rule string
		steps      []Step
		want       []string
		notReached []string
	}{
		{"a message", "", []Step{greet, send, rcpt}, message, nil},
		{"two messages", "", []Step{greet, send, rcpt, send, rcpt}, slices.Concat(message, message[2:]), nil},
		{"no recipient", "", []Step{greet, send, {"refuse", "x@example.org"}}, message[:4], nil},
		{"no recipient, then a message", "", []Step{greet, send, {"refuse", "x@example.org"}, send, rcpt}, slices.Concat(message[:4], message[2:]), nil},
		{"disconnected", "rule x phase connect match src 203.0.113.5 disconnect", []Step{greet, send}, []string{"connect disconnect"}, []string{"--helo mail.example.net", "--mail-from a@example.net"}},
		{"greeting rejected", "rule x phase helo match helo \"mail.example.net\" reject", []Step{greet, send, rcpt}, []string{"connect proceed", "helo reject"}, []string{"--mail-from a@example.net", "--rcpt bob@example.org"}},
		{"second greeting, the decision is for the session", "rule x phase helo match helo \"a.example.net\" reject", []Step{{"helo", "a.example.net"}, greet, send}, []string{"connect proceed", "helo reject", "helo reject"}, []string{"--mail-from a@example.net"}},
		{"sender rejected", "rule x phase mail-from match mail-from \"a@example.net\" reject", []Step{greet, send, rcpt, {"mail-from", "b@example.net"}, rcpt}, slices.Concat(message[:2], []string{"mail-from reject"}, message[2:]), []string{"--rcpt bob@example.org"}},
		{"recipient rejected", "rule x phase rcpt-to match rcpt-to \"bob@example.org\" reject", []Step{greet, send, rcpt}, []string{"connect proceed", "helo proceed", "mail-from proceed", "rcpt-to reject"}, nil},
		{"recipient disconnected", "rule x phase rcpt-to match rcpt-to \"bob@example.org\" disconnect", []Step{greet, send, rcpt, {"rcpt", "c@example.org"}}, []string{"connect proceed", "helo proceed", "mail-from proceed", "rcpt-to disconnect"}, []string{"--rcpt c@example.org"}},
		{"data rejected", "rule x phase data match mail-from \"a@example.net\" reject", []Step{greet, send, rcpt, {"mail-from", "b@example.net"}, {"refuse", "c@example.org"}}, slices.Concat(message[:4], []string{"data reject", "mail-from proceed", "rcpt-to proceed"}), nil},
		{"message rejected", "rule x phase commit match mail-from \"a@example.net\" reject", []Step{greet, send, rcpt, send, rcpt}, slices.Concat(message[:5], []string{"commit reject"}, message[2:5], []string{"commit reject"}), nil},
		{"unknown command and logins", "", []Step{{"line", "GET /"}, greet, {"guess", "bob"}, {"auth", "bob"}, send}, message[:3], nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []*Session
			s, err := NewScript("203.0.113.5", "192.0.2.25:25", "", "", c.steps)
			if err != nil {
				t.Fatal(err)
			}
			if err := Play(s, options(t, everyPhase+c.rule+"\n", &got)); err != nil || len(got) != 1 {
				t.Fatalf("%d sessions, %v", len(got), err)
			}
			if !slices.Equal(outline(got[0]), c.want) || !slices.Equal(got[0].NotReached, c.notReached) {
				t.Errorf("%q, not reached %q; want %q, %q", outline(got[0]), got[0].NotReached, c.want, c.notReached)
			}
		})
	}
}

// TestScriptAsRecorded compares a script's requests with the requests of a real session
// whose client sends the same commands.
func TestScriptAsRecorded(t *testing.T) {
	in, err := os.Open(filepath.Join("../../tests/streams/7.9/ehlo-delivery.in"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var recorded, scripted []*Session
	if err := PlayStream(in, options(t, everyPhase, &recorded)); err != nil || len(recorded) == 0 {
		t.Fatalf("%d sessions, %v", len(recorded), err)
	}
	s, err := NewScript("203.0.113.5", "192.0.2.25:25", "", "", []Step{greet, send, rcpt})
	if err != nil {
		t.Fatal(err)
	}
	if err := Play(s, options(t, everyPhase, &scripted)); err != nil {
		t.Fatal(err)
	}
	if got, want := outline(scripted[0]), outline(recorded[0]); !slices.Equal(got, want) {
		t.Errorf("scripted %q, recorded %q", got, want)
	}
}

// TestStreams checks that each session in a stream is reported once, and that no output line is
// wider than 80 columns.
func TestStreams(t *testing.T) {
	names, err := filepath.Glob("../../tests/streams/7.9/*.in")
	if err != nil || len(names) < 40 {
		t.Fatalf("%d streams, %v", len(names), err)
	}
	for _, name := range names {
		in, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var got []*Session
		if err := PlayStream(strings.NewReader(string(in)), options(t, everyPhase, &got)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := strings.Count(string(in), "|smtp-in|link-connect|"); len(got) != want {
			t.Errorf("%s: %d sessions, want %d", name, len(got), want)
		}
		for _, s := range got {
			var out strings.Builder
			s.Text(&out)
			for line := range strings.Lines(out.String()) {
				if len(line) > 81 && strings.Contains(strings.TrimSpace(line), " ") {
					t.Errorf("%s: %d columns: %s", name, len(line)-1, line)
				}
			}
		}
	}
}

// TestBanned checks that the output names the ban that rejected a session.
func TestBanned(t *testing.T) {
	var stream strings.Builder
	stream.WriteString("config|ready\n")
	for i := 1; i <= 2; i++ {
		at := 1795219340 + i*60
		for _, line := range []string{"link-connect|%016x|<unknown>|fail|203.0.113.5:4000|192.0.2.25:25", "protocol-server|%016x|220 mx.example.org ESMTP",
			"protocol-client|%016x|EHLO ylmf-pc", "link-identify|%016x|EHLO|ylmf-pc", "protocol-server|%016x|250 ok", "link-disconnect|%016x"} {
			fmt.Fprintf(&stream, "report|0.7|%d.000000|smtp-in|"+line+"\n", at, i)
			at++
		}
	}
	var got []*Session
	if err := PlayStream(strings.NewReader(stream.String()), options(t, "rule bot phase helo match evidence botnet-helo disconnect ban 1d\n", &got)); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || len(got[1].Phases) != 1 || got[1].Phases[0].Decision != "disconnect" || !slices.Contains(got[1].Phases[0].Facts, "banned by an earlier session") {
		t.Fatalf("%d sessions, %+v", len(got), got[1].Phases)
	}
	if s := got[0]; len(s.Phases) != 2 || len(s.Phases[1].Findings) != 1 || s.Phases[1].Findings[0].Evidence != "botnet-helo" {
		t.Errorf("%+v", s.Phases)
	}
}

func TestNewScript(t *testing.T) {
	for _, c := range []struct {
		src, dst, fcrdns string
		steps            []Step
		want             string
	}{
		{"bogus", "192.0.2.25:25", "", nil, "is not an address"},
		{"192.0.2.1", "192.0.2.25", "", nil, "is not ADDRESS:PORT"},
		{"192.0.2.1", "192.0.2.25:25", "maybe", nil, "is not pass, fail or error"},
		{"192.0.2.1", "192.0.2.25:25", "", []Step{rcpt}, "--rcpt needs --mail-from"},
		{"192.0.2.1", "192.0.2.25:25", "", []Step{send}, "--mail-from needs --helo"},
	} {
		if _, err := NewScript(c.src, c.dst, "", c.fcrdns, c.steps); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
