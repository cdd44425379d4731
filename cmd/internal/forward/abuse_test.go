package forward

import (
	"encoding/binary"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/events"
	"scanwatch/rules"
)

// about returns an event concerning a host.
func about(src, event, evidence, confidence string) *events.Event {
	return &events.Event{Event: event, Time: noon, Session: 1, Src: netip.MustParseAddr(src), Evidence: evidence, Confidence: confidence, Rule: "local-rule",
		Helo: []byte("mx.local.example"), RDNS: []byte("bob.example.org"), Proof: "RCPT TO:<bob@local.example>", Org: "local", Reason: ""}
}

func with(e *events.Event, change func(*events.Event)) *events.Event {
	change(e)
	return e
}

// TestReports checks which hosts are reported.
func TestReports(t *testing.T) {
	const host = "198.51.100.1"
	ban := about(host, "ban", "", "")
	for _, c := range []struct {
		name       string
		events     []*events.Event
		categories string // empty if there is no report
		comment    string
	}{
		{"certain", []*events.Event{about(host, "finding", "scanner", "high")}, "14", "1 SMTP session: scans mail servers"},
		{"not certain", []*events.Event{about(host, "finding", "scanner", "medium")}, "", ""},
		{"no offence", []*events.Event{about(host, "finding", "rdns-missing", "high")}, "", ""},
		{"banned", []*events.Event{about(host, "finding", "harvest", "medium"), ban}, "11,15", "1 SMTP session: guesses recipients"},
		{"banned without an offence", []*events.Event{about(host, "finding", "no-mail", "high"), ban}, "", ""},
		{"banned only", []*events.Event{ban}, "", ""},
		{"would be banned", []*events.Event{about(host, "finding", "harvest", "medium"), with(about(host, "ban", "", ""), func(e *events.Event) { e.Would = "ban" })}, "", ""},
		{"banned by the operator", []*events.Event{{Event: "ban", By: "operator", Time: noon, Prefix: host + "/32"}}, "", ""},
		{"a failed login", []*events.Event{about(host, "finding", "auth-failure", "high")}, "", ""},
		{"banned for failed logins", []*events.Event{about(host, "finding", "auth-failure", "high"), ban}, "18", "1 SMTP session: fails to log in"},
		{"banned because of a DNS list", []*events.Event{about(host, "finding", "auth-failure", "high"), with(about(host, "ban", "", ""), func(e *events.Event) { e.Listed = true })}, "", ""},
		{"several offences and sessions", []*events.Event{about(host, "finding", "scanner", "high"), about(host, "finding", "auth-spray", "low"),
			with(about(host, "finding", "relay-probe", "high"), func(e *events.Event) { e.Session = 2 })}, "14,15,18",
			"2 SMTP sessions: scans mail servers, tries to relay mail, tries passwords for many users"},
		{"exempt", []*events.Event{about(host, "finding", "scanner", "high"), about(host, "exempt", "", "")}, "", ""},
		{"a decision that was withheld", []*events.Event{about(host, "finding", "scanner", "high"), with(about(host, "verdict", "", ""), func(e *events.Event) { e.Reason = "known" })}, "", ""},
		{"exempt by a pass statement", []*events.Event{about(host, "finding", "scanner", "high"), with(about(host, "finding", "talks-http", "high"), func(e *events.Event) { e.Reason = "pass" })}, "", ""},
		{"a server that returns mail", []*events.Event{about(host, "finding", "backscatter", "low"), about(host, "finding", "harvest", "high"), ban}, "", ""},
		{"a stolen account", []*events.Event{about(host, "finding", "scanner", "high"), about(host, "finding", "account-abuse", "medium")}, "", ""},
		{"private", []*events.Event{about("192.168.1.1", "finding", "scanner", "high")}, "", ""},
		{"loopback", []*events.Event{about("127.0.0.1", "finding", "scanner", "high")}, "", ""},
		{"link-local", []*events.Event{about("fe80::1", "finding", "scanner", "high")}, "", ""},
		{"IPv6", []*events.Event{about("2001:db8::1", "finding", "scanner", "high")}, "14", "1 SMTP session: scans mail servers"},
		{"mapped", []*events.Event{about("::ffff:198.51.100.1", "finding", "scanner", "high")}, "14", "1 SMTP session: scans mail servers"},
		{"local client", []*events.Event{{Event: "finding", Time: noon, Session: 1, Evidence: "scanner", Confidence: "high"}}, "", ""},
	} {
		r := newReporter(&queue{dir: t.TempDir()})
		for _, e := range c.events {
			r.add(e)
		}
		due := r.due(noon, nil)
		if c.categories == "" {
			if len(due) != 0 {
				t.Errorf("%s: %+v", c.name, due)
			}
			continue
		}
		if len(due) != 1 || due[0].Comment != c.comment {
			t.Errorf("%s: %+v, want %s", c.name, due, c.comment)
			continue
		}
		var numbers []string
		for _, n := range due[0].Categories {
			numbers = append(numbers, strconv.Itoa(n))
		}
		if got := strings.Join(numbers, ","); got != c.categories {
			t.Errorf("%s: categories %s, want %s", c.name, got, c.categories)
		}
	}
}

// TestReportAgain checks that a host is reported only once in 15 minutes, even after a restart.
func TestReportAgain(t *testing.T) {
	dir := t.TempDir()
	r := newReporter(&queue{dir: dir})
	host := netip.MustParseAddr("198.51.100.1")
	seen := func(at time.Time, want int) {
		t.Helper()
		e := about(host.String(), "finding", "scanner", "high")
		e.Time = at
		r.add(e)
		due := r.due(at, nil)
		if len(due) != want {
			t.Errorf("%v: %d reports, want %d", at.Sub(noon), len(due), want)
		}
		for _, d := range due {
			r.stored(d.IP)
			r.setReported(d.IP, at)
		}
	}
	seen(noon, 1)
	seen(noon.Add(time.Minute), 0)
	if err := r.save(); err != nil {
		t.Fatal(err)
	}
	r = newReporter(&queue{dir: dir})
	if err := r.load(noon); err != nil {
		t.Fatal(err)
	}
	seen(noon.Add(14*time.Minute), 0)
	seen(noon.Add(16*time.Minute), 1)
	r.spare(host, noon.Add(17*time.Minute))
	seen(noon.Add(20*time.Hour), 0)
	seen(noon.Add(25*time.Hour), 1)
	// Evidence more than an hour old is not used.
	r.add(about("198.51.100.2", "finding", "scanner", "high"))
	if due := r.due(noon.Add(2*time.Hour), nil); len(due) != 0 {
		t.Errorf("%+v", due)
	}
	if err := os.WriteFile(filepath.Join(dir, "reported"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newReporter(&queue{dir: dir}).load(noon); err == nil {
		t.Error("a broken file is no error")
	}
}

// nextNetwork returns the first address of the next /64.
func nextNetwork(a netip.Addr) netip.Addr {
	b := a.As16()
	binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+1)
	return netip.AddrFrom16(b)
}

// TestManyExempt checks that no host is reported for a day if there are too many exempt
// hosts.
func TestManyExempt(t *testing.T) {
	r := newReporter(&queue{dir: t.TempDir()})
	a := netip.MustParseAddr("2001:db8::1")
	for range maxSuspects + 1 {
		r.add(about(a.String(), "exempt", "", ""))
		a = nextNetwork(a)
	}
	for at, want := range map[time.Duration]int{0: 0, 23 * time.Hour: 0, 24 * time.Hour: 1} {
		e := about("198.51.100.1", "finding", "scanner", "high")
		e.Time = noon.Add(at)
		r.add(e)
		if due := r.due(noon.Add(at), nil); len(due) != want {
			t.Errorf("after %v: %d reports, want %d", at, len(due), want)
		}
	}
}

// TestForwardAbuse checks the requests to AbuseIPDB. Hosts that the filter exempts must not be
// reported, and a report must wait while the server fails.
func TestForwardAbuse(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("Key: abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &rules.Companion{Role: rules.RoleForward, User: strconv.Itoa(os.Getuid()), Target: rules.ForwardAbuse,
		Forward: rules.Forward{Queue: t.TempDir(), Key: key}}
	r := newReceiver(t)
	r.answers = []http.HandlerFunc{status(429, "Retry-After", "0"), status(500)}
	h := newHub(t, c)
	h.spared = func(a netip.Addr) bool { return a == netip.MustParseAddr("198.51.100.2") }
	start(t, c, h, r)
	h.watched(t)
	now := time.Now()
	for _, src := range []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"} {
		e := about(src, "finding", "scanner", "high")
		e.Time = now
		for range 10 {
			h.fan.Send(e)
		}
	}
	until(t, func() bool { return len(r.accepted()) == 2 })
	var hosts []string
	for _, got := range r.accepted() {
		form, err := url.ParseQuery(string(got.body))
		if err != nil || got.path != "/report" || got.header.Get("Key") != "abc" || form.Get("categories") != "14" || form.Get("timestamp") != now.UTC().Format(time.RFC3339) {
			t.Errorf("%v, %+v, %s", err, got.header, got.body)
		}
		for _, private := range []string{"local", "bob", "RCPT"} {
			if strings.Contains(string(got.body), private) {
				t.Errorf("the report has %q: %s", private, got.body)
			}
		}
		hosts = append(hosts, form.Get("ip"))
	}
	if got := strings.Join(hosts, " "); got != "198.51.100.1 198.51.100.3" {
		t.Errorf("reports of %s", got)
	}
	os.Chmod(key, 0o644)
	e := about("198.51.100.4", "finding", "scanner", "high")
	e.Time = now
	h.fan.Send(e)
	until(t, func() bool { return strings.Contains(h.known.Status()[0].Error, "chmod 600") })
	if len(r.accepted()) != 2 {
		t.Error("a key that others can read was used")
	}
}

// TestRejectedReport checks that a report is dropped if AbuseIPDB rejects it.
func TestRejectedReport(t *testing.T) {
	r := newReceiver(t)
	key := filepath.Join(t.TempDir(), "key")
	os.WriteFile(key, []byte("abc\n"), 0o600)
	a := &abuseIPDB{client: newClient(r.roots, "", time.Now), url: r.URL, key: key}
	r.answers = []http.HandlerFunc{status(422)}
	if err := a.deliver(t.Context(), encode(report{IP: netip.MustParseAddr("198.51.100.1")})); !errors.Is(err, errRejected) {
		t.Error(err)
	}
}
