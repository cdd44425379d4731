package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/rules"
)

// A delivery is a request, or the messages in a connection to a syslog server.
type delivery struct {
	to, body string // host and path
	header   http.Header
}

// forwardRecipes maps each recipe in the manual to the files that it needs, and to a check of the
// deliveries.
var forwardRecipes = map[string]struct {
	files map[string]string
	check func(*testing.T, *delivery)
}{
	"Webhook to a chat": {map[string]string{"chat.url": "https://hooks.example.org/services/secret\n"}, func(t *testing.T, d *delivery) {
		var message struct{ Text string }
		if err := json.Unmarshal([]byte(d.body), &message); err != nil || d.to != "hooks.example.org/services/secret" ||
			!strings.Contains(message.Text, "\nban 198.51.100.7/32 rule scan until 2026-11-02T13:00:00Z") {
			t.Errorf("%v: %+v", err, d)
		}
	}},
	"Webhook to ntfy": {map[string]string{"ntfy.header": "Authorization: Bearer abc\n"}, func(t *testing.T, d *delivery) {
		if d.to != "ntfy.example.org/mail" || d.header.Get("Authorization") != "Bearer abc" || !strings.HasPrefix(d.body, "scanwatch on ") || !strings.Contains(d.body, "\nfinding 198.51.100.7 evidence scanner confidence high (2 times)\n") {
			t.Errorf("%+v", d)
		}
	}},
	"Webhook to Kafka's REST proxy": {nil, func(t *testing.T, d *delivery) {
		var batch struct {
			Records []struct {
				Key   string
				Value struct{ Event, Evidence string }
			}
		}
		if err := json.Unmarshal([]byte(d.body), &batch); err != nil || d.to != "kafka.example.org/topics/scanwatch" || d.header.Get("Content-Type") != "application/vnd.kafka.json.v2+json" ||
			len(batch.Records) < 2 || batch.Records[0].Key != "198.51.100.7" || batch.Records[0].Value.Evidence != "scanner" || batch.Records[1].Value.Event != "ban" {
			t.Errorf("%v: %+v", err, d)
		}
	}},
	"Syslog": {nil, func(t *testing.T, d *delivery) {
		if !regexp.MustCompile(`^\d+ <22>1 2026-11-02T12:00:00\.000000Z \S+ scanwatch \d+ finding \[scanwatch@32473 src="198\.51\.100\.7" `).MatchString(d.body) {
			t.Errorf("%+v", d)
		}
	}},
	"Report to AbuseIPDB": {map[string]string{"abuseipdb.key": "abc\n"}, func(t *testing.T, d *delivery) {
		form, err := url.ParseQuery(d.body)
		if err != nil || d.to != "api.abuseipdb.com/api/v2/report" || d.header.Get("Key") != "abc" || form.Get("ip") != "198.51.100.7" || form.Get("categories") != "14" ||
			form.Get("comment") != "1 SMTP session: scans mail servers" {
			t.Errorf("%v: %+v", err, d)
		}
	}},
}

// A forwardFilter is a filter's socket for companions.
type forwardFilter struct {
	fan events.Fan
}

// newForwardFilter prepares dir for a configured companion, and serves its socket.
func newForwardFilter(t *testing.T, dir, conf string) *forwardFilter {
	t.Helper()
	f := &forwardFilter{}
	tree, err := rules.Parse(conf, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	known := control.NewCompanions(tree.Settings().Companions)
	server := &control.Server{Companions: known, Commands: []control.Command{control.WatchCommand(&f.fan), known.NoteCommand(),
		control.SparedCommand(func(n control.Names) bool { return n.Addr == netip.MustParseAddr("198.51.100.9") }, func() bool { return true })}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); server.Run(ctx, filepath.Join(dir, "run"), time.Second) }()
	t.Cleanup(func() { cancel(); <-done })
	for { // until it listens; the time limit of go test ends the loop
		if c, err := control.DialCompanion(filepath.Join(dir, "run")); err == nil {
			c.Close()
			return f
		}
		runtime.Gosched()
	}
}

// watched waits until the companion is watching for events. The time limit of go test ends the loop.
func (f *forwardFilter) watched() {
	for f.fan.Watching() == 0 {
		runtime.Gosched()
	}
}

// companionUser returns the companions' user in these tests.
func companionUser() int {
	if os.Getuid() == 0 {
		return 65534
	}
	return os.Getuid()
}

// forwardDir returns a directory for a companion, with its configuration and files.
func forwardDir(t *testing.T, statement string, files map[string]string) (dir, conf string) {
	t.Helper()
	uid := companionUser()
	dir, conf = feedsConf(t, "")
	statement = strings.ReplaceAll(strings.ReplaceAll(statement, "_swforward", strconv.Itoa(uid)), "/etc/scanwatch/", dir+"/")
	statement = strings.TrimSpace(strings.ReplaceAll(statement, " every 10m", "")) + " every 1s"
	if !strings.Contains(statement, "stdout") {
		statement += fmt.Sprintf(" queue %q", filepath.Join(dir, "queue"))
	}
	err := errors.Join(os.WriteFile(conf, fmt.Appendf(nil, "rundir %q\n%s\n", filepath.Join(dir, "run"), statement), 0o644),
		os.Mkdir(filepath.Join(dir, "run"), 0o755), os.Mkdir(filepath.Join(dir, "queue"), 0o700), os.Chown(filepath.Join(dir, "queue"), uid, -1))
	for name, content := range files {
		name = filepath.Join(dir, name)
		err = errors.Join(err, os.WriteFile(name, []byte(content), 0o600), os.Chown(name, uid, -1))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, conf
}

// sendEvents sends findings and bans for two hosts, one of which the filter exempts.
func (f *forwardFilter) sendEvents(hosts ...string) {
	for _, host := range hosts {
		src := netip.MustParseAddr(host)
		e := events.Event{Event: "finding", Time: now, Session: 7, Src: src, Evidence: "scanner", Confidence: "high", Helo: []byte("<!channel>")}
		f.fan.Send(&e)
		f.fan.Send(&e)
		f.fan.Send(&events.Event{Event: "ban", Time: now, Session: 7, Src: src, Prefix: host + "/32", Rule: "scan", Until: now.Add(time.Hour)})
	}
}

// TestForwardRecipes runs the manual's recipes as the companion's user.
func TestForwardRecipes(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), ".Sh EVENTS FOR OTHER PROGRAMS\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	told := map[string]bool{}
	for _, part := range strings.Split(section, ".Ss ")[1:] {
		title, text, _ := strings.Cut(part, "\n")
		m := regexp.MustCompile(`(?s)\.Bd -literal -offset indent\n(companion forward .*?)\.Ed`).FindStringSubmatch(text)
		if m == nil {
			continue
		}
		told[title] = true
		command := regexp.MustCompile(`(?m)^\.Dl # (install .*)$`).FindStringSubmatch(text)
		t.Run(title, func(t *testing.T) { forwardRecipe(t, title, unroff(m[1]), command) })
	}
	for title := range forwardRecipes {
		if !told[title] {
			t.Errorf("the manual has no recipe %q", title)
		}
	}
}

func forwardRecipe(t *testing.T, title, statement string, command []string) {
	recipe, ok := forwardRecipes[title]
	if !ok {
		t.Fatal("no row gives the purpose of this recipe")
	}
	in := newInternet(t)
	arrived := make(chan delivery, 10)
	accept := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrived <- delivery{r.Host + r.URL.Path, string(body), r.Header}
	}
	for _, to := range []string{"hooks.example.org/services/secret", "ntfy.example.org/mail", "kafka.example.org/topics/scanwatch", "api.abuseipdb.com/api/v2/report"} {
		in.set(to, accept)
	}
	if strings.Contains(statement, "tls://logs.example.org:6514") {
		statement = strings.ReplaceAll(statement, "tls://logs.example.org:6514", "tls://"+syslogServer(t, in.tls, arrived))
	}
	dir, conf := forwardDir(t, statement, recipe.files)
	if command != nil {
		runInstall(t, dir, command[1], recipe.files)
	}
	var out, stderr bytes.Buffer
	if status := program(&stderr).main([]string{"-f", conf, "check"}, &out); status != exitOK || stderr.Len() > 0 {
		t.Fatalf("check: exit status %d\n%s%s", status, out.String(), stderr.String())
	}
	f := newForwardFilter(t, dir, conf)
	_, target, _ := strings.Cut(statement, " to ")
	cmd := in.command(t, "-f", conf, "forward", strings.Fields(target)[0]) // as the service
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.watched()
	if strings.Contains(title, "AbuseIPDB") {
		f.sendEvents("198.51.100.9") // exempt
	}
	f.sendEvents("198.51.100.7")
	d := <-arrived
	for !strings.Contains(d.body, "198.51.100.7") { // skip the gap that the start of the service counts as
		d = <-arrived
	}
	recipe.check(t, &d)
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil || strings.Contains(stderr.String(), "level=WARN") || strings.Contains(stderr.String(), "level=ERROR") {
		t.Errorf("%v: %s", err, stderr.String())
	}
	if strings.Contains(d.body, "channel") && title != "Webhook to Kafka's REST proxy" {
		t.Errorf("text of a client: %s", d.body)
	}
}

// runInstall runs a command of a recipe that creates a file from standard input.
func runInstall(t *testing.T, dir, command string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if !strings.HasSuffix(command, "/etc/scanwatch/"+name) {
			t.Fatalf("%s does not create %s", command, name)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", strings.ReplaceAll(strings.ReplaceAll(command, "_swforward", strconv.Itoa(companionUser())), "/etc/scanwatch/", dir+"/"))
		cmd.Stdin = strings.NewReader(content)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
}

// syslogServer returns the address of a server. The server sends all data that it receives in a
// connection to a channel.
func syslogServer(t *testing.T, config *tls.Config, to chan<- delivery) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(conn)
			conn.Close()
			to <- delivery{to: "syslog", body: string(b)}
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

// TestForwardStdout checks the batches on standard output, and the output of a service that ends.
func TestForwardStdout(t *testing.T) {
	dir, conf := forwardDir(t, "companion forward user _swforward to stdout", nil)
	f := newForwardFilter(t, dir, conf)
	cmd := newInternet(t).command(t, "-f", conf, "forward", "stdout")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.watched()
	f.sendEvents("198.51.100.7", "198.51.100.9")
	var batch struct {
		Version int
		Events  []struct {
			Src, Event string
			Count      int
		}
	}
	if err := json.NewDecoder(out).Decode(&batch); err != nil || batch.Version != 1 || len(batch.Events) == 0 || batch.Events[0].Src != "198.51.100.7" {
		t.Errorf("%v: %+v", err, batch)
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

// TestForwardArguments checks how a destination is selected.
func TestForwardArguments(t *testing.T) {
	_, conf := feedsConf(t, `companion forward user a to url "https://a.example/1"
companion forward user a to url "/etc/b.url"
companion forward user a to syslog "/dev/log"
`)
	_, none := feedsConf(t, "mode observe\n")
	for args, want := range map[string]string{
		"-f " + conf + " forward":           "several companions in " + conf + ", select one: url a.example, url /etc/b.url, syslog /dev/log",
		"-f " + conf + " forward url":       "several companions",
		"-f " + conf + " forward mail":      "no such companion",
		"-f " + conf + " forward a.example": "user of the companion: user: unknown user a",
		"-f " + none + " forward":           "has no statement companion forward",
		"-f " + conf + " forward a b":       "unexpected argument",
		"-f " + conf + " forward /dev/log":  "user of the companion: user: unknown user a",
	} {
		if strings.Contains(want, "unknown user") && os.Getuid() != 0 {
			continue
		}
		var stderr bytes.Buffer
		if status := program(&stderr).main(strings.Fields(args), io.Discard); status == exitOK || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit status %d: %s, want %s", args, status, stderr.String(), want)
		}
	}
}
