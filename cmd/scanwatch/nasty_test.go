package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/events"
	"scanwatch/filter/memory"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/tests/hostiletext"
)

// A format checks that output has a certain format.
type format func([]byte) error

var (
	forPeople   format = hostiletext.Terminal
	jsonValues  format = func(out []byte) error { return hostiletext.JSON(out, nil) }
	spreadsheet format = hostiletext.CSV
)

// nastyOutputs lists every output that can contain text from clients: each command in each format.
// In arguments, $N represents hostile text, $ID for the ID of a session that contains this text,
// and $DIR for a directory whose files contain hostile text.
var nastyOutputs = []struct {
	args   string
	format format
	silent bool // output may be empty
}{
	{"report", forPeople, false},
	{"report --limit 1000", forPeople, false},
	{"report --limit 1000 --json", jsonValues, false},
	{"report --limit 1000 --mail", forPeople, false},
	{"report --limit 1000 --html $DIR/page.html", forPeople, true},
	{"report scanners", forPeople, true},
	{"report scanners --optout", forPeople, true},
	{"report scanners --json", jsonValues, false},
	{"report users", forPeople, false},
	{"report users --json", jsonValues, false},
	{"report returns", forPeople, false},
	{"report returns --json", jsonValues, false},
	{"dump", jsonValues, false},
	{"dump --json --limit 3", jsonValues, false},
	{"dump --csv", spreadsheet, false},
	{"show $ID", forPeople, false},
	{"show $ID --json", jsonValues, false},
	{"why $ID", forPeople, false},
	{"why $ID --json", jsonValues, false},
	{"why --all 203.0.113.0/24", forPeople, false},
	{"why --letter --all 203.0.113.0/24", forPeople, true},
	{"why --as helo -- $N", forPeople, true},
	{"why --as helo --json -- $N", jsonValues, true},
	{"why --as sender $N@example.net", forPeople, true},
	{"why -- $N", forPeople, true},
	{"bans", forPeople, false},
	{"bans --all --json", jsonValues, false},
	{"top", forPeople, false},
	{"stats", forPeople, false},
	{"stats --json", jsonValues, false},
	{"stats --prometheus", forPeople, false},
	{"stats --prometheus -o $DIR/numbers.prom", forPeople, true},
	{"forget -- $N", forPeople, true},
	{"forget -- $N@example.net", forPeople, true},
	{"forget --json -- $N", jsonValues, true},
	{"anonymize $DIR/copy", forPeople, true},
	{"export plain --evidence any --min-confidence low --bans", forPeople, true},
	{"export json --evidence any --min-confidence low --bans", jsonValues, true},
	{"export csv --evidence any --min-confidence low --bans", spreadsheet, true},
	{"export pf --evidence any --min-confidence low --bans", forPeople, true},
	{"export pf-anchor --evidence any --min-confidence low --bans", forPeople, true},
	{"export nft --evidence any --min-confidence low --bans", forPeople, true},
	{"export ipset --evidence any --min-confidence low --bans", forPeople, true},
	{"export iptables --evidence any --min-confidence low --bans", forPeople, true},
	{"export ip6tables --evidence any --min-confidence low --bans", forPeople, true},
	{"export ip-route --evidence any --min-confidence low --bans", forPeople, true},
	{"export bsd-route --evidence any --min-confidence low --bans", forPeople, true},
	{"export spamd --evidence any --min-confidence low --bans", forPeople, true},
	{"export postfix --evidence any --min-confidence low --bans", forPeople, true},
	{"export sendmail --evidence any --min-confidence low --bans", forPeople, true},
	{"export rspamd --evidence any --min-confidence low --bans", forPeople, true},
	{"export kumomta --evidence any --min-confidence low --bans", forPeople, true},
	{"export crowdsec --evidence any --min-confidence low --bans", jsonValues, true},
	{"export fail2ban --evidence any --min-confidence low --bans", forPeople, true},
	{"export abuseipdb --evidence any --min-confidence low --bans", spreadsheet, true},
	{"export rbldnsd --evidence any --min-confidence low --bans", forPeople, true},
	{"export bind --evidence any --min-confidence low --bans", forPeople, true},
	{"completion zsh", forPeople, false},
	{"completion fish", forPeople, false},
	{"version", forPeople, false},
	{"help", forPeople, false},
	{"help export", forPeople, false},
	{"help $N", forPeople, true},
	{"fsck", forPeople, false},
	{"fsck --json", jsonValues, false},
	{"backtest --policy tight", forPeople, false},
	{"backtest --policy tight --json", jsonValues, false},
	{"test --enforce -v --policy tight --stream $DIR/stream", forPeople, false},
	{"test --policy tight --stream $DIR/stream --json", jsonValues, false},
	{"test --policy tight -v --src 192.0.2.9 --rdns $N --helo $N --line $N --guess $N --auth $N --mail-from $N --rcpt $N --refuse $N", forPeople, true},
	{"test --policy tight --json --src 192.0.2.9 --helo $N --mail-from $N --rcpt $N", jsonValues, true},
	{"check $DIR/nasty.conf", forPeople, true},
	{"check $DIR/listed.conf", forPeople, true},
	{"policy $DIR/listed.conf", forPeople, true},
	{"policy --print $DIR/listed.conf", forPeople, true},
	{"policy --privacy $DIR/listed.conf", forPeople, true},
	{"completion bash", forPeople, false},
	{"lists", forPeople, false},
	{"update --list", forPeople, false},
	{"update --list --json", jsonValues, false},
	{"lists botnet-helo --format json", jsonValues, false},
	{"import --check $DIR/list", forPeople, true},
	{"import --check $DIR/list.csv", forPeople, true},
	{"import --check $DIR/list.json", forPeople, true},
	{"import smtpd $DIR/stream", forPeople, false},
	{"import smtpd $DIR/list", forPeople, true},
	{"import smtpd-log --dry-run $DIR/maillog", forPeople, true},
	{"import smtpd-log --dry-run --json $DIR/maillog", jsonValues, true},
	{"import smtpd-log --dry-run $DIR/list", forPeople, true},
	{"import postfix $DIR/maillog", forPeople, true},
	{"import sendmail $DIR/maillog", forPeople, true},
	{"import exim $DIR/maillog", forPeople, true},
	{"import kumomta $DIR/maillog", forPeople, true},
	{"import icewarp $DIR/maillog", forPeople, true},
	{"import mdaemon $DIR/maillog", forPeople, true},
	{"import postal $DIR/maillog", forPeople, true},
	{"import domino $DIR/maillog", forPeople, true},
	// The error for an invalid argument quotes that argument.
	{"follow $N -", forPeople, true},
	{"export $N", forPeople, true},
	{"sync --dry-run -- $N", forPeople, true},
	{"export plain --evidence $N", forPeople, true},
	{"$N", forPeople, true},
	{"report $N", forPeople, true},
	{"report --since $N", forPeople, true},
	{"dump --src $N", forPeople, true},
	{"dump --evidence $N", forPeople, true},
	{"dump --rule $N", jsonValues, true},
	{"dump --user $N", jsonValues, true},
	{"dump --helo $N", jsonValues, true},
	{"dump --listener $N", forPeople, true},
	{"dump --limit $N", forPeople, true},
	{"__complete unban $N", forPeople, true},
	{"__complete dump --rule $N", forPeople, true},
	{"show $N", forPeople, true},
	{"ban $N", forPeople, true},
	{"unban $N", forPeople, true},
	{"log $N", forPeople, true},
	{"watch --src $N", forPeople, true},
	{"key --show $DIR/list", forPeople, true},
	{"share drop $N", forPeople, true},
	{"facts $N", forPeople, true},
	{"facts export --host $N --key $DIR/list", forPeople, true},
	{"facts import --host $N --key $DIR/list $DIR/list", forPeople, true},
}

// toldLive lists the commands that need a running filter; see TestNastyLive.
var toldLive = []string{"status", "flush", "reload", "mode", "watch", "ban", "unban", "log", "serve", "forward", "lookup", "share"}

// TestNastyOutput checks that text from clients never breaks the format of an output or
// error.
func TestNastyOutput(t *testing.T) {
	dir, files := t.TempDir(), t.TempDir()
	if err := errors.Join(hostiletext.Store(dir, now), nastyFiles(files)); err != nil {
		t.Fatal(err)
	}
	for _, o := range nastyOutputs {
		t.Run(o.args, func(t *testing.T) {
			texts := hostiletext.Texts()
			if !strings.Contains(o.args, "$N") && !strings.Contains(o.args, "$ID") {
				texts = texts[:1]
			}
			for i, text := range texts {
				// Program arguments cannot contain NUL.
				arg := strings.ReplaceAll(text.Text, "\x00", "")
				args := []string{"-s", dir}
				for _, a := range strings.Fields(o.args) {
					args = append(args, strings.NewReplacer("$N", arg, "$ID", hostiletext.SessionID(i), "$DIR", files).Replace(a))
				}
				var stdout, stderr bytes.Buffer
				e := program(&stderr)
				e.find = func(file string) string { return file }
				status := e.main(args, &stdout)
				out := bytes.ReplaceAll(stdout.Bytes(), []byte(files), nil)
				if err := o.format(out); err != nil {
					t.Errorf("%s: %v", text.Name, err)
				}
				for _, name := range []string{"page.html", "numbers.prom"} {
					data, err := os.ReadFile(filepath.Join(files, name))
					if err != nil {
						continue
					}
					if err := hostiletext.Terminal(data); err != nil || bytes.Contains(data, []byte("<script>alert")) || bytes.Contains(data, []byte("<img src=x")) {
						t.Errorf("%s: %v, or markup of a stranger", name, err)
					}
					_ = os.Remove(filepath.Join(files, name))
				}
				if err := hostiletext.Terminal(stderr.Bytes()); err != nil {
					t.Errorf("%s: stderr: %v", text.Name, err)
				}
				if !o.silent && (status != exitOK || len(out) == 0) {
					t.Errorf("%s: status %d with %d bytes: %s", text.Name, status, len(out), stderr.Bytes())
				}
			}
		})
	}
}

// TestNastyOutputIsComplete checks that nastyOutputs lists every command in each of its
// formats.
func TestNastyOutputIsComplete(t *testing.T) {
	for _, c := range leaves(program(io.Discard).root()) {
		name := strings.TrimPrefix(c.CommandPath(), "scanwatch ")
		var rows []string
		for _, o := range nastyOutputs {
			if o.args == name || strings.HasPrefix(o.args, name+" ") {
				rows = append(rows, o.args)
			}
		}
		if slices.Contains(toldLive, name) {
			continue
		}
		if len(rows) == 0 {
			t.Errorf("%s has no row in nastyOutputs", name)
		}
		for _, form := range []string{"json", "csv", "html", "mail", "prometheus"} {
			if c.Flags().Lookup(form) != nil && !slices.ContainsFunc(rows, func(args string) bool { return strings.Contains(args, "--"+form) }) {
				t.Errorf("%s --%s has no row in nastyOutputs", name, form)
			}
		}
	}
}

// leaves returns all commands that can be run, without the root command.
func leaves(cmd *cobra.Command) (all []*cobra.Command) {
	for _, c := range cmd.Commands() {
		all = append(append(all, c), leaves(c)...)
	}
	return all
}

// nastyFiles creates files with hostile text in formats that an operator may receive.
func nastyFiles(dir string) error {
	var list, csv, jsons, conf, maillog strings.Builder
	csv.WriteString("ip,name\n")
	for _, text := range hostiletext.Texts() {
		fmt.Fprintf(&list, "192.0.2.1 # %s\n%s\n", text.Text, text.Text)
		fmt.Fprintf(&csv, "192.0.2.1,%s\n%s,x\n", text.Text, text.Text)
		fmt.Fprintf(&maillog, "2026-11-01T10:00:00Z mx smtpd[1]: 0123456789abcdef smtp %s\n", text.Text)
		fmt.Fprintf(&jsons, "{\"cidr\":%q}\n{\"cidr\":\"192.0.2.0/24\",\"sblid\":%q}\n{%s\n", text.Text, text.Text, text.Text)
		fmt.Fprintf(&conf, "%s\nrule %s phase helo match helo %q reject \"550 %s\"\n", text.Text, text.Text, text.Text, text.Text)
	}
	listed := "table <a> file \"list\"\ntable <b> file \"list.csv\" format firehol\ntable <c> file \"list.json\" format spamhaus-drop\ntable <d> names file \"list\"\n" +
		"rule a phase connect match src <a> disconnect\nrule b phase connect match src <c> disconnect\n"
	files := map[string]string{
		"maillog": maillog.String(), "list": list.String(), "list.csv": csv.String(), "list.json": jsons.String(),
		"nasty.conf": conf.String(), "listed.conf": listed, "stream": string(hostiletext.Stream()),
	}
	var err error
	for name, data := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o640))
	}
	return err
}

// TestNastyDumpKeepsAll checks that escaping does not lose any text from clients.
func TestNastyDumpKeepsAll(t *testing.T) {
	dir := t.TempDir()
	if err := hostiletext.Store(dir, now); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if status := program(&stderr).main([]string{"-s", dir, "dump"}, &stdout); status != exitOK {
		t.Fatal(stderr.String())
	}
	texts := hostiletext.Texts()
	i := 0
	err := hostiletext.JSON(stdout.Bytes(), func(v any) {
		said := v.(map[string]any)["helo"].([]any)[0].(map[string]any)["name"].(string)
		got, err := text.Unescape(said)
		if want := texts[i].Text[:min(len(texts[i].Text), 1000)]; err != nil || string(got) != want {
			t.Errorf("%s: %q was read as %q, %v", texts[i].Name, want, got, err)
		}
		i++
	})
	if err != nil || i != len(texts) {
		t.Errorf("%d sessions of %d, %v", i, len(texts), err)
	}
}

// TestNastyLive checks the output of commands that need a running filter.
func TestNastyLive(t *testing.T) {
	dir, err := os.MkdirTemp("", "sw") // a path short enough for the socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := hostiletext.Store(dir, now); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	m := memory.New()
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	if err := errors.Join(w.Flush(ctx), state.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	var watched events.Fan
	nastyText := hostiletext.Texts()[0].Text
	verbs := append(control.StoreCommands(w, state.Flush), control.StatusCommand(func() control.Status {
		return control.Status{Program: "test", Started: text.At(now), Store: w.Status(), State: state.Status(), Memory: m.Status(),
			Config: control.Config{File: nastyText, Mode: "observe", Problem: nastyText}}
	}), control.WatchCommand(&watched))
	verbs = append(verbs, control.MemoryCommands(m, state, now.UnixMicro, func() bool { return true }, func(memory.Ban) {})...)
	done := make(chan bool)
	go func() {
		defer close(done)
		(&control.Server{Commands: verbs}).Run(ctx, dir, time.Second)
	}()
	defer func() { stop(); <-done; _ = errors.Join(w.Close(), state.Close()) }()
	for { // until the filter is listening; the time limit of go test ends the loop
		if c, err := control.Dial(dir); err == nil {
			c.Close()
			break
		}
	}
	for _, args := range []string{"status", "top --once", "bans", "report --limit 1000", "why 203.0.113.5", "show " + hostiletext.SessionID(0),
		"ban --force 192.0.2.77 --reason $N", "ban 203.0.113.5", "bans", "unban 192.0.2.77", "unban 198.18.0.0/16"} {
		for _, text := range hostiletext.Texts() {
			var list []string
			for _, a := range strings.Fields("-s " + dir + " " + args) {
				list = append(list, strings.ReplaceAll(a, "$N", text.Text[:min(len(text.Text), 200)]))
			}
			var stdout, stderr bytes.Buffer
			program(&stderr).main(list, &stdout)
			if err := errors.Join(hostiletext.Terminal(stdout.Bytes()), hostiletext.Terminal(stderr.Bytes())); err != nil {
				t.Errorf("%s: %v", args, err)
			}
			if !strings.Contains(args, "$N") {
				break
			}
		}
	}
	for _, asJSON := range []bool{false, true} {
		args := []string{"-s", dir, "watch"}
		check := hostiletext.Terminal
		if asJSON {
			args, check = append(args, "--json"), jsonValues
		}
		// Send each event only after the previous one has been printed.
		r, out := io.Pipe()
		begun := make(chan bool, 1)
		go func() {
			defer out.Close()
			program(notify{begun}).main(args, out)
		}()
		<-begun
		var all bytes.Buffer
		lines := bufio.NewReader(r)
		for _, event := range hostiletext.Events(now) {
			watched.Send(&event)
			line, err := lines.ReadBytes('\n')
			if err != nil {
				t.Fatalf("watch, JSON %v: %v", asJSON, err)
			}
			all.Write(line)
		}
		r.Close()
		if err := check(all.Bytes()); err != nil {
			t.Errorf("watch, JSON %v: %v", asJSON, err)
		}
	}
}

// A notify reports its first write.
type notify struct{ c chan bool }

func (n notify) Write(b []byte) (int, error) {
	select {
	case n.c <- true:
	default:
	}
	return len(b), nil
}
