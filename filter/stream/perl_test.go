package stream

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"scanwatch/store"
)

const converter = "../../contrib/perl-logger/logger2smtpd"

// convert runs the converter on a directory, and returns the output.
func convert(t *testing.T, dir string) (lines []byte, stderr string, err error) {
	t.Helper()
	perl, err := exec.LookPath("perl")
	if err != nil {
		t.Skip("SKIPPED: perl is not installed; the converter in contrib/perl-logger is not tested")
	}
	var problems bytes.Buffer
	cmd := exec.Command(perl, converter, dir)
	cmd.Stderr = &problems
	lines, err = cmd.Output()
	return lines, problems.String(), err
}

// last returns the text of the last step of the given kind.
func last(r *store.Record, kind store.Kind) (text string) {
	_ = r.Steps(func(s *store.Step) bool {
		if s.Kind == kind {
			text = string(s.Text)
		}
		return true
	})
	return text
}

var (
	loggedGreeting  = regexp.MustCompile(`'command' => 'EHLO ([^']*)'|'identity' => '([^']*)'`)
	loggedRecipient = regexp.MustCompile(`(?m)^rcpt-to (.*)$`)
)

// TestPerlLogger checks that each file of a real logger becomes a part of its session's record. The
// part must contain the greeting and the last recipient in the file.
func TestPerlLogger(t *testing.T) {
	const samples = "testdata/perl-logger"
	files, err := os.ReadDir(samples)
	if err != nil || len(files) != 14 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(file.Name(), func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(samples, file.Name()))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, file.Name()), text, 0o640); err != nil {
				t.Fatal(err)
			}
			lines, stderr, err := convert(t, dir)
			if err != nil || stderr != "" {
				t.Fatal(err, stderr)
			}
			state := t.TempDir()
			if r, err := Import(bytes.NewReader(lines), options(state)); err != nil || r.Sessions != 1 || r.Skipped != 0 {
				t.Fatalf("%+v, %v", r, err)
			}
			record := records(t, state)[0]
			greeting := loggedGreeting.FindSubmatch(text)
			if got, want := last(&record, store.KindHelo), string(greeting[1])+string(greeting[2]); got != want {
				t.Errorf("greeting %q, want %q", got, want)
			}
			want := ""
			for _, m := range loggedRecipient.FindAllSubmatch(text, -1) {
				want = string(m[1])
			}
			if got := last(&record, store.KindRcpt); got != want || strings.HasPrefix(file.Name(), "r.") && want == "" {
				t.Errorf("recipient %q, want %q", got, want)
			}
			if want := "7641" + file.Name()[6:]; !strings.Contains(string(lines), want) {
				t.Errorf("no session %s", want)
			}
		})
	}
	lines, stderr, err := convert(t, samples)
	if err != nil || stderr != "" || bytes.Count(lines, []byte("config|ready\n")) != len(files) {
		t.Errorf("all files: %v, %s", err, stderr)
	}
}

// TestPerlLoggerText checks the conversion of texts that the samples do not contain. The texts
// contain both kinds of quotes, both kinds of login, several files for one session, and files of
// other programs. No text may be evaluated as code.
func TestPerlLoggerText(t *testing.T) {
	const (
		head  = `'session' => '00000000000000a1', 'subsystem' => 'smtp-in', 'version' => '0.7', 'request' => 'report', `
		state = `$VAR1 = { ` + head + `'event' => 'protocol-client', 'timestamp' => '1767225600.000009', 'rdns' => 'mail.example.net', ` +
			`'fcrdns' => 'pass', 'src' => '192.0.2.1:4711', 'dest' => '192.0.2.2:25', 'command' => 'EHLO mail.example.net' };` + "\n"
		list = `$VAR1 = [ { ` + head + `'event' => 'link-connect', 'timestamp' => '1767225600.000001', 'rdns' => 'mail.example.net', ` +
			`'fcrdns' => 'pass', 'src' => '192.0.2.1:4711', 'dest' => '192.0.2.2:25' },` + "\n"
	)
	connect := "report|0.7|1767225600.000001|smtp-in|link-connect|00000000000000a1|mail.example.net|pass|192.0.2.1:4711|192.0.2.2:25\n"
	event := func(fields string) string {
		return `{ ` + head + `'timestamp' => '1767225600.000002', ` + fields + ` },` + "\n"
	}
	out := func(fields string) string { return "report|0.7|1767225600.000002|smtp-in|" + fields + "\n" }
	for _, c := range []struct {
		name   string
		files  map[string]string
		want   string
		stderr string
	}{
		{"greeting", map[string]string{"h.a1": state},
			strings.ReplaceAll(connect, ".000001", ".000009") +
				"report|0.7|1767225600.000009|smtp-in|protocol-client|00000000000000a1|EHLO mail.example.net\n" +
				"report|0.7|1767225600.000009|smtp-in|link-identify|00000000000000a1|EHLO|mail.example.net\n", ""},
		{"quotes", map[string]string{"r.a1": list + event(`'event' => 'protocol-client', 'command' => 'a\'b\\c|"d"'`) + event(`"event" => "protocol-client", "command" => "a\"\$\x{e9}"`) + "];"},
			connect + out(`protocol-client|00000000000000a1|a'b\c|"d"`) + out("protocol-client|00000000000000a1|a\"$\u00e9"), ""},
		{"logins", map[string]string{"r.a1": list + event(`'event' => 'link-auth', 'username' => 'fail', 'result' => 'alice|x'`) +
			event(`'event' => 'link-auth', 'username' => 'alice', 'result' => 'fail'`) + "];"},
			connect + out("link-auth|00000000000000a1|fail|alice|x") + out("link-auth|00000000000000a1|fail|alice"), ""},
		{"rejected greeting", map[string]string{"r.a1": list + event(`'event' => 'protocol-client', 'command' => 'EHLO x'`) +
			event(`'event' => 'protocol-server', 'response' => '550 no'`) + "];"},
			connect + out("protocol-client|00000000000000a1|EHLO x") + out("protocol-server|00000000000000a1|550 no"), ""},
		{"newer file", map[string]string{"h.a1": state, "r.a1": list + "];", "old/r.a1": list + event(`'event' => 'timeout'`) + "];"},
			connect + out("timeout|00000000000000a1"), ""},
		{"line break", map[string]string{"r.a1": list + event(`'event' => 'protocol-client', 'command' => "a\nb"`) + "];"}, connect, ""},
		{"secrets", map[string]string{"r.a1": list + event(`'request' => 'filter', 'phase' => 'auth', 'text' => 'PLAIN x'`) + "];"}, connect, ""},
		{"other file", map[string]string{"h.b": "not a dump", "r.a1": list + "];", "x.c": "ignored"}, connect, "h.b: no session"},
		{"truncated", map[string]string{"r.a1": list[:100]}, "", "r.a1: unknown value"},
		{"code", map[string]string{"r.a1": `$VAR1 = { 'a' => system("touch executed") };`}, "", "r.a1: unknown value"},
		{"nested", map[string]string{"r.a1": "$VAR1 = " + strings.Repeat("[", 100_000)}, "", "r.a1: nested too deeply"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				name = filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			lines, stderr, err := convert(t, dir)
			want := c.want
			if want != "" {
				want = "config|ready\n" + want
			}
			if string(lines) != want {
				t.Errorf("got\n%s\nwant\n%s", lines, want)
			}
			if (err != nil) != (c.stderr != "") || !strings.Contains(stderr, c.stderr) {
				t.Errorf("error %v, stderr %q, want %q", err, stderr, c.stderr)
			}
		})
	}
	if _, err := os.Stat("executed"); err == nil {
		t.Error("a text was evaluated")
	}
}
