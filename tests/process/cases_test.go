//go:build linux

package process

// This file contains cases that need the real programs: exports, files of friends, unban, a restart
// without the state, and check.

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"scanwatch/filter/smtpd"
	"scanwatch/tests/cases"
	"scanwatch/tests/internal/filterproc"
	servers "scanwatch/tests/internal/smtpd"
	"scanwatch/tests/simulate"
)

// A play runs a case with the filter as a process.
type play struct {
	*cases.Server
	t          *testing.T
	conf, dir  string // configuration, state
	p          *filterproc.Program
	now        time.Time
	sessions   int
	statements []string
}

// delayed matches rules that delay a client, because a delay would take real time.
var delayed = regexp.MustCompile(`(?m)^rule .* delay \d+s.*\n`)

// begin writes a preset with changes and starts the filter.
func begin(t *testing.T, preset string, edit func(policy, dir string) string, now time.Time) *play {
	t.Helper()
	text, err := simulate.PresetText(preset)
	if err != nil {
		t.Fatal(err)
	}
	text = strings.Replace(delayed.ReplaceAllString(text, ""), "\nmode observe", "\nmode enforce", 1)
	etc := t.TempDir()
	if edit != nil {
		text = edit(text, etc)
	}
	s := &play{t: t, conf: filepath.Join(etc, "scanwatch.conf"), dir: t.TempDir(), now: now}
	s.write("scanwatch.conf", text)
	return s
}

// write writes a file to the configuration's directory.
func (s *play) write(name, text string) {
	if err := os.WriteFile(filepath.Join(filepath.Dir(s.conf), name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// start starts or restarts the filter.
func (s *play) start() {
	s.t.Helper()
	s.p = filterproc.Start(s.t, "-f", s.conf, "-s", s.dir)
	s.set(s.now)
}

// set sets the clock.
func (s *play) set(now time.Time) {
	if s.Server != nil {
		s.sessions = s.Sessions()
		s.statements = append(s.statements, s.Fails...)
	}
	var phases []smtpd.ID
	for id := smtpd.ID(1); id < 64; id++ {
		if s.p.Asked[id.String()] {
			phases = append(phases, id)
		}
	}
	s.Server = cases.Over(simulate.NewLiveOver(s.p.Server, s.p.Line, phases, now))
	s.Number(s.sessions)
}

// stop stops the filter.
func (s *play) stop() {
	s.t.Helper()
	s.Flush()
	s.now = s.Now().Add(time.Second)
	s.p.End(0)
}

// scanwatch runs scanwatch(8) and returns its output.
func (s *play) scanwatch(args ...string) string {
	out, _ := exec.Command(servers.Bin("scanwatch"), append([]string{"-f", s.conf, "-s", s.dir}, args...)...).CombinedOutput()
	return string(out)
}

// complaint returns the errors and warnings that scanwatch check prints.
func (s *play) complaint() string {
	out, err := exec.Command(servers.Bin("scanwatch"), "check", s.conf).CombinedOutput()
	if err != nil || strings.Contains(strings.ToLower(string(out)), "warn") {
		return string(out) + " "
	}
	return ""
}

// end reports the failed statements.
func (s *play) end() {
	s.t.Helper()
	for _, f := range append(s.statements, s.Fails...) {
		s.t.Error(f)
	}
}

func host(addr, name, helo string) simulate.Host {
	return simulate.Host{Src: netip.MustParseAddr(addr), RDNS: name, Helo: helo}
}

// former returns n local parts of former users.
func former(n int) (local []string) {
	for i := range n {
		local = append(local, "left"+string(rune('0'+i)))
	}
	return local
}

// odd plays an old program that sends mail to former users. From an unknown client, such mail is
// rejected.
func (s *play) odd(addr string) *simulate.Client {
	return s.Deliver(host(addr, "", "User"), "scanner@printer.example", append(former(6), "alice")...)
}

// TestExportedHosts checks that exports contain the attacker and no legitimate host.
func TestExportedHosts(t *testing.T) {
	for _, preset := range []string{"open", "standard"} {
		s := begin(t, preset, nil, time.Now().Add(-12*time.Hour))
		s.start()
		s.Earlier()
		s.Harvests(host("203.0.113.50", "", "mail.x.example"), 30, 30)
		s.Bounces(host("198.51.100.140", "mail.partner.example", "mail.partner.example"), former(8)...)
		s.Deliver(host("198.51.100.141", "lists.club.example", "lists.club.example"), "list-bounces@club.example",
			strings.Fields("alice left1 bob left2 left3 carol left4 left5 dave")...)
		s.Deliver(host("198.51.100.142", "app.customer.example", "[127.0.0.1]"), "app@customer.example", "alice")
		s.Deliver(host("2001:db8:140::25", "mx.choir.example", "[IPv6:::1]"), "app@choir.example", "alice")
		s.stop()
		for _, format := range []string{"plain", "abuseipdb"} {
			out := s.scanwatch("export", format, "--evidence", "harvest,relay-probe,scanner,botnet-helo,auth-spray,early-talker,helo-own-address,helo-own-name,helo-forged")
			s.Check(strings.Contains(out, "203.0.113.50"), "%s, %s: the attacker is missing in %q", preset, format, out)
			for _, a := range []string{"198.51.100.140", "198.51.100.141", "198.51.100.142", "2001:db8:140:"} {
				s.Check(!strings.Contains(out, a), "%s, %s: contains %s", preset, format, a)
			}
		}
		s.end()
	}
}

func friendsFile(text, dir string) string {
	return regexp.MustCompile(`(?m)^table <friends> .*$`).ReplaceAllLiteralString(text, `table <friends> file "`+filepath.Join(dir, "friends")+`"`)
}

// TestFriendsFile checks that friends are not rejected permanently if their file is unreadable
// after a restart. Each line of the file must have an effect or cause an error.
func TestFriendsFile(t *testing.T) {
	for _, preset := range []string{"standard", "tight"} {
		s := begin(t, preset, friendsFile, time.Now().AddDate(0, 0, -20))
		s.write("friends", "192.0.2.80\n")
		s.start()
		a := s.odd("192.0.2.80")
		s.scanwatch("ban", "192.0.2.64/28", "--for", "30d", "--reason", "noisy")
		s.Accepted(a)
		s.stop()
		if err := os.Remove(filepath.Join(filepath.Dir(s.conf), "friends")); err != nil {
			t.Fatal(err)
		}
		s.start()
		s.Temporary(s.odd("192.0.2.80"))
		s.Wait(10 * time.Minute)
		s.stop()
		s.write("friends", "192.0.2.80\n")
		s.start()
		c := s.odd("192.0.2.80")
		s.Accepted(c)
		s.Delivered(c)
		s.stop()
		s.end()
	}
	for lines, members := range map[string][]string{
		"192.0.2.10 - 192.0.2.20\n": {"192.0.2.15", "192.0.2.20"},
		"192.0.2.81, 192.0.2.82\n":  {"192.0.2.81", "192.0.2.82"},
		"192.0.2.81 192.0.2.82\n":   {"192.0.2.81", "192.0.2.82"},
		"2001:db8::1-2001:db8::9\n": {"2001:db8::5"},
	} {
		s := begin(t, "standard", friendsFile, time.Now().AddDate(0, 0, -20))
		s.write("friends", lines)
		if out := s.complaint(); out != "" {
			t.Logf("check of %q: %s", lines, out)
			continue
		}
		s.start()
		for _, m := range members {
			c := s.odd(m)
			s.Accepted(c)
			s.Delivered(c)
		}
		s.stop()
		s.end()
	}
}

// TestUnban checks that scanwatch unban also clears the counters. Otherwise, a phone with an old
// password would immediately cause another ban of its office.
func TestUnban(t *testing.T) {
	for _, preset := range []string{"standard", "tight"} {
		s := begin(t, preset, nil, time.Now().Add(-33*time.Minute))
		s.start()
		s.Earlier()
		office := host("198.51.100.33", "office.firm.example", "laptop")
		for range 32 {
			s.Login(office, "alice", 1, false)
			s.Wait(time.Minute)
		}
		s.Connect(host("192.0.2.200", "", "-")).Leave() // the answer proves that the filter has read all earlier events
		s.scanwatch("unban", "198.51.100.33")
		s.Wait(time.Minute)
		look := s.Login(office, "", 0, false)
		s.Wait(time.Minute)
		c := s.Login(office, "bob", 0, true)
		s.Accepted(look, c)
		s.Delivered(c)
		s.stop()
		s.end()
	}
}

// TestUnreadState checks that a known sender is not rejected permanently as unknown while the
// filter has not read its state.
func TestUnreadState(t *testing.T) {
	rule := `rule strangers phase rcpt-to match src 198.51.100.0/24 !seen-good reject "550 5.7.1 Strangers of this network are rejected"` + "\n"
	partner := host("198.51.100.125", "mail.partner.example", "mail.partner.example")
	s := begin(t, "standard", nil, time.Now().AddDate(0, 0, -20))
	s.start()
	s.History(partner, 12, 24*time.Hour)
	s.stop()
	text, err := os.ReadFile(s.conf)
	if err != nil {
		t.Fatal(err)
	}
	s.write("scanwatch.conf", string(text)+rule)
	state, err := os.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(state.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.Temporary(s.Message(partner))
	s.stop()
	if err := state.Close(); err != nil {
		t.Fatal(err)
	}
	s.start()
	filterproc.Eventually(t, "the state has been read", func() bool { return s.Message(partner).Mails() > 0 })
	s.stop()
	s.end()
}
