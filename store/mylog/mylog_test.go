package mylog

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s; run with -update and look at the diff. Got:\n%s", name, got)
	}
}

// files returns the look-alikes in testdata/history, which Perl's Data::Dumper
// wrote of the stream in testdata/said.txt.
func files(t testing.TB) fstest.MapFS {
	t.Helper()
	m := fstest.MapFS{}
	dir := os.DirFS("testdata/history")
	names, err := fs.Glob(dir, "*")
	if err != nil || len(names) != 8 {
		t.Fatalf("%d files in testdata/history, want 8 (%v)", len(names), err)
	}
	for _, name := range names {
		b, err := fs.ReadFile(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		m[name] = &fstest.MapFile{Data: b}
	}
	return m
}

// read returns what Read visits: a line for each session, then its lines.
func read(t testing.TB, fsys fs.FS) ([]byte, Report) {
	t.Helper()
	var b bytes.Buffer
	r, err := Read(fsys, func(s *Session) error {
		fmt.Fprintf(&b, "# %016x src=%v start=%s end=%s ended=%v state-only=%v events=%d omitted=%d\n", s.ID, s.Src,
			s.Start.Format(time.RFC3339Nano), s.End.Format(time.RFC3339Nano), s.Ended, s.StateOnly, s.Events, s.Omitted)
		return Lines(&b, s)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), r
}

func TestRead(t *testing.T) {
	got, r := read(t, files(t))
	got = fmt.Appendf(got, "# %+v\n", r)
	golden(t, "testdata/history.golden", got)
	for i := range 9 {
		if bytes.Contains(got, fmt.Appendf(nil, "secret-%d", i)) || bytes.Contains(got, []byte("c2VjcmV0")) || bytes.Contains(got, []byte("AGFsaWNl")) {
			t.Fatal("a password was kept")
		}
	}
}

// What is put together again is what smtpd said, but for the passwords.
func TestLinesAreWhatWasSaid(t *testing.T) {
	said, err := os.ReadFile("testdata/said.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{}
	for line := range strings.Lines(string(said)) {
		id := strings.Split(strings.TrimSuffix(line, "\n"), "|")[5]
		want[id] = append(want[id], line)
	}
	compared := 0
	r, err := Read(files(t), func(s *Session) error {
		var b bytes.Buffer
		if err := Lines(&b, s); err != nil {
			return err
		}
		got := slices.Collect(strings.Lines(b.String()))
		id := fmt.Sprintf("%016x", s.ID)
		if s.StateOnly || id == "7641dfa4806496cf" { // the one with passwords
			return nil
		}
		compared += len(got)
		if !slices.Equal(got, want[id]) {
			t.Errorf("session %s:\n%s\nwas said:\n%s", id, strings.Join(got, ""), strings.Join(want[id], ""))
		}
		return nil
	}, nil)
	if err != nil || r.Sessions != 5 || compared < 60 {
		t.Errorf("compared %d lines of %d sessions, error %v", compared, r.Sessions, err)
	}
}

// records returns what package session makes of a stream. The sessions' ends
// are not known, so those that are open at its end are compared as well.
func records(t *testing.T, stream []byte) map[uint64]string {
	t.Helper()
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	m := map[uint64]string{}
	table := session.NewTable(session.Options{
		Log:   func([]byte) {},
		Lists: func() *lookup.Lists { return lists },
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), value)
			if err != nil {
				t.Error(err)
				return
			}
			b := fmt.Appendf(nil, "%v %v %v %s %v %v %+v\n", r.Start.UTC(), r.End.UTC(), r.Src, r.RDNS, r.FCrDNS, r.Ending, r.Counts)
			if err := r.Steps(func(s *store.Step) bool {
				b = fmt.Appendf(b, "%v kind=%d %q %q %v %d %q %q %q %q\n", s.At, s.Kind, s.Text, s.Arg, s.Result, s.Code, s.Reply, s.By, s.Match, s.Confidence)
				return true
			}); err != nil {
				t.Error(err)
			}
			m[id] = string(b)
		},
	})
	config, err := rules.Parse("test.conf", func(string) ([]byte, error) { return []byte("mode observe\n"), nil })
	if err != nil {
		t.Fatal(err)
	}
	policy, _, err := rules.Compile(config, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	table.Use(&session.Settings{Policy: policy})
	if err := filter.Serve(bytes.NewReader(stream), io.Discard, table, filter.Options{Log: func(s string) { t.Error(s) }}); err != nil {
		t.Fatal(err)
	}
	table.Stop()
	return m
}

// TestRecords checks that a session is judged as it would have been when it
// happened: the record made of its file's lines is that of what smtpd said.
func TestRecords(t *testing.T) {
	said, err := os.ReadFile("testdata/said.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := records(t, said)
	compared := 0
	if _, err := Read(files(t), func(s *Session) error {
		if s.StateOnly {
			return nil
		}
		compared++
		var b bytes.Buffer
		if err := Lines(&b, s); err != nil {
			return err
		}
		// Stop ends sessions at the newest time that it knows.
		cut := func(s string) string {
			head, steps, _ := strings.Cut(s, "\n")
			f := strings.Fields(head)
			return strings.Join(append(f[:4], f[8:]...), " ") + "\n" + steps
		}
		if got := cut(records(t, b.Bytes())[s.ID]); got != cut(want[s.ID]) {
			t.Errorf("session %016x: record\n%s\nwant\n%s", s.ID, got, cut(want[s.ID]))
		}
		return nil
	}, nil); err != nil || compared != 3 {
		t.Errorf("compared %d sessions, want 3 (%v)", compared, err)
	}
}

// A finding on the greeting is possible when only the state is known.
func TestStateOnlyIsJudged(t *testing.T) {
	m := files(t)
	h := m["h.7641df9770702369"]
	h.Data = bytes.ReplaceAll(h.Data, []byte("WIN-F6C20LL"), []byte("ylmf-pc"))
	var b bytes.Buffer
	if _, err := Read(fstest.MapFS{"h.1": h}, func(s *Session) error { return Lines(&b, s) }, nil); err != nil {
		t.Fatal(err)
	}
	got := records(t, b.Bytes())[0x7641df9770702369]
	if !strings.Contains(got, "botnet-helo") {
		t.Errorf("no finding on the greeting:\n%s", got)
	}
	if strings.Contains(got, "early-talker") || strings.Contains(got, "no-mail") {
		t.Errorf("a finding on what is not known:\n%s", got)
	}
}

func TestReadMerges(t *testing.T) {
	all := files(t)
	h, r := all["h.7641e0b03908def1"].Data, all["r.7641e0b03908def1"].Data
	shorter := bytes.Replace(r, []byte("$VAR1 = [\n"), []byte("$VAR1 = [ {'event' => 'link-connect', 'request' => 'report', 'session' => '7641e0b03908def1', 'subsystem' => 'smtp-in', 'timestamp' => '1767225600.500000', 'src' => '192.0.2.10:33228', 'dest' => '203.0.113.25:25', 'rdns' => '<unknown>', 'fcrdns' => 'fail'} ];\n$OLD = [\n"), 1)
	shorter = shorter[:bytes.Index(shorter, []byte("$OLD"))]
	other := bytes.ReplaceAll(r, []byte("192.0.2.10:33228"), []byte("192.0.2.11:33228"))
	later := bytes.ReplaceAll(bytes.ReplaceAll(r, []byte("1767225600."), []byte("1767315600.")), []byte("1767225601."), []byte("1767315601."))
	for _, tc := range []struct {
		name      string
		files     map[string][]byte
		sessions  int
		events    int // of all
		stateOnly int
	}{
		{name: "greeting alone", files: map[string][]byte{"h.a": h}, sessions: 1, events: 4, stateOnly: 1},
		{name: "greeting and recipients", files: map[string][]byte{"h.a": h, "r.a": r}, sessions: 1, events: 28},
		{name: "older state of the list", files: map[string][]byte{"r.a": r, "r.b": shorter}, sessions: 1, events: 28},
		{name: "in other directories", files: map[string][]byte{"x/h.a": h, "y/z/r.a": r}, sessions: 1, events: 28},
		{name: "the same file twice", files: map[string][]byte{"x/r.a": r, "y/r.a": r}, sessions: 1, events: 28},
		{name: "same id, another source", files: map[string][]byte{"r.a": r, "r.b": other}, sessions: 2, events: 56},
		{name: "same id and source, another day", files: map[string][]byte{"r.a": r, "r.b": later}, sessions: 2, events: 56},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := fstest.MapFS{}
			for name, b := range tc.files {
				m[name] = &fstest.MapFile{Data: b}
			}
			events := 0
			var ends []time.Time
			var done []int
			r, err := Read(m, func(s *Session) error {
				events += s.Events
				ends = append(ends, s.End)
				return nil
			}, func(n, total int) {
				if total != 2*len(tc.files) {
					t.Errorf("total is %d", total)
				}
				done = append(done, n)
			})
			if err != nil || r.Files != len(tc.files) || r.Sessions != tc.sessions || events != tc.events || r.StateOnly != tc.stateOnly || r.Skipped != 0 {
				t.Errorf("%d events, %+v, error %v", events, r, err)
			}
			if !slices.IsSortedFunc(ends, time.Time.Compare) {
				t.Errorf("not in order of the ends: %v", ends)
			}
			if !slices.IsSorted(done) || done[len(done)-1] != 2*len(tc.files) {
				t.Errorf("progress %v", done)
			}
		})
	}
}

func TestReadSkips(t *testing.T) {
	all := files(t)
	whole := all["r.7641e0b03908def1"].Data
	m := fstest.MapFS{
		"r.whole":       {Data: whole},
		"r.cut":         {Data: whole[:len(whole)/2]},
		"r.cut-string":  {Data: whole[:bytes.LastIndex(whole, []byte("rcpt-to"))+3]},
		"h.empty":       {},
		"h.script":      {Data: []byte("#!/usr/bin/perl\nuse strict;\nmy $x = shift;\n$x = system('true');\n")},
		"h.mail":        {Data: []byte("From: a@example.org\n\nHello\n")},
		"h.other":       {Data: []byte("$VAR1 = { 'name' => 'value' };\n")},
		"h.no-id":       {Data: []byte("$VAR1 = { 'session' => 'x' };\n")},
		"h.no-connect":  {Data: []byte("$VAR1 = { 'session' => 'ab', 'timestamp' => '1.000000', 'subsystem' => 'smtp-in', 'command' => 'HELO x' };\n")},
		"h.socket":      {Mode: fs.ModeSocket},
		"h.binary":      {Data: []byte("\x7fELF\x02\x01\x01\x00$\x00")},
		"h.large":       {Data: bytes.Repeat([]byte(" "), maxFile+1)},
		"mylog.pl":      {Data: []byte("#!/usr/bin/perl\n")},
		"old/h.dir/log": {Data: []byte("x")},
	}
	_, r := read(t, m)
	var b bytes.Buffer
	for _, s := range r.Skips {
		fmt.Fprintf(&b, "%s: %v\n", s.Name, s.Reason)
	}
	r.Skips = nil
	fmt.Fprintf(&b, "%+v\n", r)
	golden(t, "testdata/skips.golden", b.Bytes())
}

func TestReadNamesFirstSkips(t *testing.T) {
	m := fstest.MapFS{}
	for i := range 25 {
		m[fmt.Sprintf("h.%02d", i)] = &fstest.MapFile{}
	}
	_, r := read(t, m)
	if r.Skipped != 25 || len(r.Skips) != 20 || r.Skips[0].Name != "h.00" || r.Skips[19].Name != "h.19" || !r.Oldest.IsZero() {
		t.Errorf("%+v", r)
	}
}

func TestReadErrors(t *testing.T) {
	stop := errors.New("stop")
	r, err := Read(files(t), func(*Session) error { return stop }, nil)
	if !errors.Is(err, stop) || r.Sessions != 1 {
		t.Errorf("error %v after %d sessions, want that of visit after 1", err, r.Sessions)
	}
	if _, err := Read(os.DirFS(filepath.Join(t.TempDir(), "none")), nil, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if err := Lines(failing{}, &Session{ID: 0xab, lines: []byte("x")}); err == nil || !strings.Contains(err.Error(), "00000000000000ab") {
		t.Errorf("error %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("full") }

// changing gives a file other contents the second time.
type changing struct {
	fstest.MapFS
	opened map[string]int
	second []byte
}

func (c changing) Open(name string) (fs.File, error) {
	if c.opened[name]++; strings.HasPrefix(name, "r.") && c.opened[name] == 2 {
		return fstest.MapFS{name: {Data: c.second}}.Open(name)
	}
	return c.MapFS.Open(name)
}

func TestReadWhileTheFilterWrites(t *testing.T) {
	all := files(t)
	r := all["r.7641e0b03908def1"].Data
	for name, second := range map[string][]byte{"cut": r[:1000], "another session": all["r.7641e0f792b02c91"].Data} {
		t.Run(name, func(t *testing.T) {
			_, report := read(t, changing{fstest.MapFS{"r.a": {Data: r}}, map[string]int{}, second})
			if report.Sessions != 0 || report.Skipped != 1 {
				t.Errorf("%+v", report)
			}
		})
	}
}

// event returns a list of a link-connect and one more event.
func event(pairs map[string]string) string {
	b := []byte("$VAR1 = [ { 'request' => 'report', 'event' => 'link-connect', 'session' => 'ab', 'subsystem' => 'smtp-in', 'timestamp' => '1767225600.000001', 'rdns' => 'x', 'fcrdns' => 'pass', 'src' => '192.0.2.1:1', 'dest' => '192.0.2.2:25' }, {")
	all := map[string]string{"request": "'report'", "session": "'ab'", "subsystem": "'smtp-in'", "timestamp": "'1767225600.000002'"}
	maps.Copy(all, pairs)
	for _, k := range slices.Sorted(maps.Keys(all)) {
		b = fmt.Appendf(b, "'%s' => %s, ", k, all[k])
	}
	return string(append(b, "} ];"...))
}

func TestEvents(t *testing.T) {
	const head = "report|0.7|1767225600.000002|smtp-in|"
	type m = map[string]string
	for _, tc := range []struct {
		name string
		m    m
		want string // "" for none
	}{
		{"client", m{"event": "'protocol-client'", "command": "'a|b'"}, head + "protocol-client|00000000000000ab|a|b"},
		{"client's empty line", m{"event": "'protocol-client'", "command": "undef"}, head + "protocol-client|00000000000000ab|"},
		{"number for a string", m{"event": "'tx-commit'", "message-id": "12345678", "message-size": "99"}, head + "tx-commit|00000000000000ab|12345678|99"},
		{"disconnect", m{"event": "'link-disconnect'"}, head + "link-disconnect|00000000000000ab"},
		{"parameter", m{"event": "'filter-response'", "phase": "'ehlo'", "response": "'reject'", "param": "'550 no|no'"}, head + "filter-response|00000000000000ab|ehlo|reject|550 no|no"},
		{"parameter of auth", m{"event": "'filter-response'", "phase": "'auth'", "response": "'reject'", "param": "'550 secret'"}, head + "filter-response|00000000000000ab|auth|reject"},
		{"login, named right", m{"event": "'link-auth'", "username": "'alice'", "result": "'fail'"}, head + "link-auth|00000000000000ab|fail|alice"},
		{"login, named by place", m{"event": "'link-auth'", "username": "'fail'", "result": "'al|ice'"}, head + "link-auth|00000000000000ab|fail|al|ice"},
		{"login of a user called pass", m{"event": "'link-auth'", "username": "'fail'", "result": "'pass'"}, ""},
		{"login without a user", m{"event": "'link-auth'", "username": "'fail'", "result": "''"}, head + "link-auth|00000000000000ab|fail|"},
		{"login that neither failed nor passed", m{"event": "'link-auth'", "username": "'alice'", "result": "'bob'"}, ""},
		{"login of 0.6", m{"version": "'0.6'", "event": "'link-auth'", "username": "'alice'", "result": "'fail'"}, head + "link-auth|00000000000000ab|fail|alice"},
		{"login of 0.6, user called pass", m{"version": "'0.6'", "event": "'link-auth'", "username": "'pass'", "result": "'fail'"}, head + "link-auth|00000000000000ab|fail|pass"},
		{"login of 0.6, user called pass|fail|x", m{"version": "'0.6'", "event": "'link-auth'", "username": "'pass'", "result": "'fail|x|fail'"}, head + "link-auth|00000000000000ab|fail|pass|fail|x"},
		{"login of 0.10", m{"version": "'0.10'", "event": "'link-auth'", "username": "'fail'", "result": "'alice'"}, head + "link-auth|00000000000000ab|fail|alice"},
		{"request", m{"request": "'filter'", "phase": "'rcpt-to'", "opaque-token": "'0c'", "address": "'a@example.org'"},
			"filter|0.7|1767225600.000002|smtp-in|rcpt-to|00000000000000ab|000000000000000c|a@example.org"},
		{"request without fields", m{"request": "'filter'", "phase": "'data'", "opaque-token": "'0c'"},
			"filter|0.7|1767225600.000002|smtp-in|data|00000000000000ab|000000000000000c|"},
		{"request for a password", m{"request": "'filter'", "phase": "'auth'", "auth": "'PLAIN secret'"}, ""},
		{"message text", m{"request": "'filter'", "phase": "'data-line'", "line": "'Dear'"}, ""},
		{"unknown event", m{"event": "'link-party'"}, ""},
		{"unknown stream", m{"request": "'config'", "event": "'timeout'"}, ""},
		{"no event", m{}, ""},
		{"another session", m{"event": "'timeout'", "session": "'ac'"}, ""},
		{"second connection", m{"event": "'link-connect'", "rdns": "'x'", "fcrdns": "'pass'", "src": "'y'", "dest": "'z'"}, ""},
		{"mail on its way out", m{"event": "'timeout'", "subsystem": "'smtp-out'"}, ""},
		{"time without fraction", m{"event": "'timeout'", "timestamp": "'1767225600'"}, ""},
		{"time that is none", m{"event": "'timeout'", "timestamp": "'1767225600.00000x'"}, ""},
		{"line that would be two", m{"event": "'protocol-client'", "command": "\"x\\nreport|0.7|1.000000|smtp-in|tx-reset|00000000000000ab|1\""}, ""},
		{"field that would be two", m{"event": "'tx-mail'", "message-id": "'1|ok'", "result": "'ok'", "address": "'x'"}, ""},
		{"field missing", m{"event": "'tx-mail'", "message-id": "'1'", "address": "'x'"}, ""},
		{"last field missing", m{"event": "'tx-mail'", "message-id": "'1'", "result": "'ok'"}, ""},
		{"field undef", m{"event": "'tx-mail'", "message-id": "'1'", "result": "undef", "address": "'x'"}, ""},
		{"field is a list", m{"event": "'protocol-client'", "command": "['x']"}, ""},
		{"field is a reference", m{"event": "'protocol-client'", "command": "$VAR1->[0]{'src'}"}, ""},
		{"field too long", m{"event": "'protocol-client'", "command": "'" + strings.Repeat("x", maxField+1) + "'"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			values, err := Parse([]byte(event(tc.m)))
			if err != nil {
				t.Fatal(err)
			}
			s, err := decode(values, nil)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitN(string(s.lines), "\n", 3)
			if tc.want == "" {
				if s.Omitted != 1 || s.Events != 1 || lines[1] != "" {
					t.Errorf("omitted %d of %d: %q", s.Omitted, s.Events, s.lines)
				}
				return
			}
			if lines[1] != tc.want || s.Omitted != 0 || s.Ended != strings.Contains(tc.want, "link-disconnect") {
				t.Errorf("got %q, %d omitted, ended %v, want %q", lines[1], s.Omitted, s.Ended, tc.want)
			}
		})
	}
}

// A list that began late takes the connection from the state.
func TestConnectionOfTheState(t *testing.T) {
	text := strings.Replace(event(map[string]string{"event": "'timeout'"}), "'link-connect'", "'link-party'", 1)
	values, err := Parse([]byte("$VAR1 = { 'session' => 'ab', 'timestamp' => '1767225600.000009', 'subsystem' => 'smtp-in', 'rdns' => 'x', 'fcrdns' => 'pass', 'src' => '[2001:db8::1]:1', 'dest' => '[2001:db8::2]:25' };" + text))
	if err != nil {
		t.Fatal(err)
	}
	s, err := decode(values, nil)
	want := "report|0.7|1767225600.000001|smtp-in|link-connect|00000000000000ab|x|pass|[2001:db8::1]:1|[2001:db8::2]:25\n" +
		"report|0.7|1767225600.000002|smtp-in|timeout|00000000000000ab\n"
	if err != nil || string(s.lines) != want || s.Omitted != 1 || s.StateOnly || s.Src.String() != "[2001:db8::1]:1" {
		t.Errorf("%v %+v %s", err, s, s.lines)
	}
}

// BenchmarkRead reads 10,000 files: half of them lists, half greetings.
func BenchmarkRead(b *testing.B) {
	all := files(b)
	h, r := all["h.7641e0b03908def1"].Data, all["r.7641e0b03908def1"].Data
	dir := b.TempDir()
	var size int64
	for i := range 5000 {
		id := fmt.Appendf(nil, "%016x", 0x7641e0b000000000+uint64(i))
		for kind, text := range map[string][]byte{"h.": h, "r.": r} {
			text = bytes.ReplaceAll(text, []byte("7641e0b03908def1"), id)
			size += int64(len(text))
			if err := os.WriteFile(filepath.Join(dir, kind+string(id)), text, 0o600); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		r, err := Read(os.DirFS(dir), func(s *Session) error { return Lines(io.Discard, s) }, nil)
		if err != nil || r.Sessions != 5000 || r.Files != 10000 {
			b.Fatal(r, err)
		}
	}
}
