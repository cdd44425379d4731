package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"scanwatch/filter/serverlog"
)

// TestServersManual checks that scanwatch-servers(7) and scanwatch(8) name each kind of log, and
// that the manual's policy is valid.
func TestServersManual(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch-servers.7")
	if err != nil {
		t.Fatal(err)
	}
	commands, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range serverlog.Kinds {
		if !strings.Contains(string(page), k.Name) || !strings.Contains(string(commands), k.Name) {
			t.Errorf("the manuals do not name %s", k.Name)
		}
	}
	if tested := strings.Count(string(page), "\nTested: "); tested != 3 {
		t.Errorf("%d servers are tested, according to the manual", tested)
	}
	milter, err := os.ReadFile("../../man/milter-scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{string(page), string(milter)} {
		_, text, _ := strings.Cut(page, "\n.Ss Policy\n")
		_, text, _ = strings.Cut(text, "\nmode observe\n")
		text, _, ok := strings.Cut(text, ".Ed\n")
		file := filepath.Join(t.TempDir(), "conf")
		if err := os.WriteFile(file, []byte("mode observe\n"+strings.ReplaceAll(text, `\e`, `\`)), 0o600); err != nil || !ok {
			t.Fatal(ok, err)
		}
		var out, stderr strings.Builder
		if status := program(&stderr).main([]string{"check", file}, &out); status != exitOK || stderr.Len() > 0 || !strings.Contains(out.String(), "no errors") {
			t.Errorf("status %d: %s%s", status, out.String(), stderr.String())
		}
	}
	if status := program(io.Discard).main([]string{"follow", "qmail", "-"}, io.Discard); status != exitUsage {
		t.Errorf("follow of an unknown kind: status %d", status)
	}
}

// TestServersViews checks the views of sessions from the logs of other mail servers. The views must
// not name smtpd, or show an empty server name.
func TestServersViews(t *testing.T) {
	for _, k := range serverlog.Kinds {
		dir := t.TempDir()
		run := func(args ...string) string {
			t.Helper()
			var out, stderr strings.Builder
			if status := program(&stderr).main(append([]string{"-s", dir}, args...), &out); status != exitOK {
				t.Fatalf("%s %q: status %d, %s", k.Name, args, status, stderr.String())
			}
			return out.String()
		}
		log := "../../filter/serverlog/testdata/" + k.Name + ".log"
		first, second := run("import", k.Name, log), run("import", k.Name, log)
		if strings.Contains(first, "recorded") || !regexp.MustCompile(`sessions  (\d+), (\d+) already recorded\n`).MatchString(second) {
			t.Errorf("%s: first import\n%s\nsecond\n%s", k.Name, first, second)
		}
		views := run("report", "--since", "2020-01-01") + run("why", "--all", "--since", "2020-01-01", "0.0.0.0/0")
		for _, id := range regexp.MustCompile(`scanwatch -s \S+ show ([0-9a-f]{16})`).FindAllStringSubmatch(views, -1) {
			views += run("show", id[1])
		}
		if !strings.Contains(views, "Reported  by") || !strings.Contains(views, "reported by") {
			t.Errorf("%s: incomplete views:\n%s", k.Name, views)
		}
		for _, line := range strings.Split(views, "\n") {
			if strings.Contains(line, "smtpd") || strings.Contains(line, "by  ") || strings.Contains(line, "not running") {
				t.Errorf("%s: %s", k.Name, line)
			}
		}
	}
}

// TestUsers checks that the manual, the services and the packages name the same users.
func TestUsers(t *testing.T) {
	read := func(pattern string) string {
		t.Helper()
		files, err := filepath.Glob("../../" + pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		var all strings.Builder
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(text)
		}
		return all.String()
	}
	users := func(text, pattern string) []string {
		var list []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			list = append(list, m[1])
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	want := users(read("packaging/systemd/*.service"), `(?m)^User=(\S+)$`)
	_, section, _ := strings.Cut(read("man/scanwatch.8"), "\n.Ss Users and services\n")
	section, _, _ = strings.Cut(section, "\n.Pp\n")
	loop := regexp.MustCompile(`for user in .*;`).FindString(read("packaging/debian/postinst"))
	for name, got := range map[string][]string{
		"scanwatch(8)": users(section, `\b(_sw\w+)`), "postinst": users(loop, `\b(_sw\w+)`),
		"manuals": users(read("man/*.[578]")+read("README.md"), `\b(_sw[a-z]+)\b`),
	} {
		if !slices.Equal(got, want) || len(want) != 8 {
			t.Errorf("%s has the users %q, the services have %q", name, got, want)
		}
	}
	port := users(read("ports/mail/*/*/pkg/PLIST"), `(?m)^@newuser (_sw\w+):`)
	if services := users(read("ports/mail/*/*/pkg/*.rc"), `daemon_user="(\w+)"`); len(services) == 0 || !subset(services, port) || !subset(port, want) {
		t.Errorf("the port creates %q, its services run as %q", port, services)
	}
	for _, m := range regexp.MustCompile(`companion(?: Cm)? (\w+) user (_sw\w+)`).FindAllStringSubmatch(read("man/*.[578]")+read("README.md"), -1) {
		if m[2] != "_sw"+m[1] {
			t.Errorf("%s", m[0])
		}
	}
	for kind, user := range map[string]string{"milter": "_swmilter", "follow@": "_swfollow"} {
		unit := read("packaging/systemd/scanwatch-" + kind + ".service")
		dir := regexp.MustCompile(`(?m)^RuntimeDirectory=(\S+)$`).FindStringSubmatch(unit)
		if dir == nil || !strings.Contains(unit, "User="+user+"\n") {
			t.Errorf("%s: directory %q: %s", kind, dir, unit)
			continue
		}
		if name := strings.Replace(dir[1], "%i", "KIND", 1); !strings.Contains(read("man/scanwatch-servers.7"), "/run/"+name) {
			t.Errorf("the manual does not name /run/%s", name)
		}
	}
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}
