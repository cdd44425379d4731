package erase

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/privacy"
	"scanwatch/internal/smtp"
	"scanwatch/store"
)

var noon = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func subject(t *testing.T, arg string) Subject {
	t.Helper()
	s, err := Parse(arg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParse(t *testing.T) {
	for arg, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "192.0.2.0/24": "192.0.2.0/24", "2001:db8::7": "2001:db8::/64", "[2001:db8::7]": "2001:db8::/64",
		"::ffff:192.0.2.1": "192.0.2.1", "10.0.0.0/8": "10.0.0.0/8", "2001:db8::/32": "2001:db8::/32",
		"Erin@Example.org": "erin@example.org", "<erin@example.org>": "erin@example.org", "ERIN": "erin", `dom\\erin`: `dom\\erin`,
		"1234": "1234", "erin/work@example.org": "erin/work@example.org", `"Erin"@example.org`: "erin@example.org",
		"x\x1b[31m": `x\x1b[31m`, `x\x1b[31m`: `x\x1b[31m`, "fe80": "fe80",
	} {
		if s, err := Parse(arg); err != nil || s.String() != want {
			t.Errorf("%q: %v, %v, want %s", arg, s, err, want)
		}
	}
	for _, arg := range []string{"", "<>", "@example.org", "erin@", "192.0.2.300", "192.0.2.0/33", "0.0.0.0/0", "::/0", "2001::/15", "192.0.2.1/", "a/b", "postmaster", `"abuse"@example.org`, "abuse@example.org", strings.Repeat("x", 256)} {
		if s, err := Parse(arg); err == nil {
			t.Errorf("%q: %v", arg, s)
		}
	}
}

// TestParseAgain checks that Parse rejects a name for which String returns a text that would be
// parsed as another person.
func TestParseAgain(t *testing.T) {
	for _, arg := range []string{"<192.0.2.1>", `\x3192.0.2.1`, `10.0.0.0\x2f8`, "<<erin>>", "<<erin@example.org>>"} {
		s, err := Parse(arg)
		if err == nil {
			again, _ := Parse(s.String())
			t.Errorf("%q: %q, and %q in the filter", arg, s, again)
		}
	}
}

// TestRole checks that Role recognises a role account with a detail.
func TestRole(t *testing.T) {
	for arg, want := range map[string]bool{"postmaster+x@example.org": true, "Abuse+x+y@example.org": true, "erin+abuse@example.org": false, "abuse-x@example.org": false,
		"postmaster.erin@example.org": false, "erin": false, "192.0.2.1": false} {
		if got := subject(t, arg).Role('+'); got != want {
			t.Errorf("%s: %v", arg, got)
		}
	}
}

// TestShortName checks that the record of a session with very many short names is not too long
// after the names have been replaced.
func TestShortName(t *testing.T) {
	var all []store.Step
	line, size := []byte("VRFY"+strings.Repeat(" a", 126)), 0
	for ; size < 64<<10; size += len(line) {
		all = append(all, store.Step{Kind: store.KindCommand, Text: line})
	}
	r, _ := record(t, "192.0.2.1", all...)
	got := New(subject(t, "a"), nil, '+').Edit(&r)
	if got == nil {
		t.Fatal("the name was not found")
	}
	if n := len(store.AppendRecord(nil, got, steps(got))); n > store.MaxValue {
		t.Errorf("%d bytes, more than %d", n, store.MaxValue)
	}
	if strings.Contains(shown(got), " a") {
		t.Error("the name remains")
	}
}

// TestReplaced checks which names in a text are replaced.
func TestReplaced(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	h := privacy.New(key)
	hash := func(name string) string { return string(h.Mailbox(nil, []byte(name))) }
	for _, c := range []struct{ who, text, want string }{
		{"erin@example.org", "erin@example.org", "#"},
		{"erin@example.org", "Erin+list@EXAMPLE.org", "#"},
		{"erin+x@example.org", "erin@example.org", "#"},
		{"erin@example.org", `"erin"@example.org`, "#"},
		{"erin@example.org", "550 5.1.1 <erin@example.org>: unknown, not <carol@example.org>", "550 5.1.1 <#>: unknown, not <carol@example.org>"},
		{"erin@example.org", "RCPT TO:erin@example.org", "RCPT TO:#"},
		{"erin@example.org", "MAIL FROM:<a@example.net> AUTH=erin@example.org", "MAIL FROM:<a@example.net> AUTH=#"},
		{"erin@example.org", "erin@example.org,erin@example.org.", "#,#."},
		{"erin@example.org", "bounces+erin=example.org@lists.example.net", "bounces+#@lists.example.net"},
		{"erin@example.org", "<" + hash("erin@example.org") + ">", "<#>"},
		{"erin@example.org", "@relay.example:erin@example.org", "@relay.example:#"},
		{"erin@example.org", "xerin@example.org erin@example.org.uk erin@example.orgs erin@mail.example.org @example.org erin", ""},
		{"erin@example.org", hash("erin@example.com"), ""},
		{"erin", hash("erin"), "#"},
		{"erin", "ERIN", "#"},
		{"erin", "<erin>", ""}, // the place is alone
		{"erin", "erin@example.org", ""},
		{"192.0.2.1", "192.0.2.1", "#"},
		{"192.0.2.1", "[192.0.2.1]", "[#]"},
		{"192.0.2.1", "421 bye 192.0.2.1.", "421 bye #."},
		{"192.0.2.1", "192.0.2.1:25 ::ffff:192.0.2.1", "# #"},
		{"192.0.2.1", "192.0.2.10 1192.0.2.1 192.0.2.1.5 19.2.0.2", ""},
		{"192.0.2.0/24", "192.0.2.255, 192.0.3.1, a192.0.2.1", "#, 192.0.3.1, a192.0.2.1"},
		{"2001:db8::7", "[IPv6:2001:0DB8:0:0::9] 2001:db8:0:1::7 2001:db8::", "[IPv6:#] 2001:db8:0:1::7 #"},
		{"2001:db8::7", "ff::: 1:2 ::: :", ""},
	} {
		e := New(subject(t, c.who), key, '+')
		want := strings.ReplaceAll(c.want, "#", Marker)
		if c.want == "" {
			want = c.text
		}
		if got := e.replaced([]byte(c.text), 1, alone); string(got) != want {
			t.Errorf("%s in %q: %q, want %q", c.who, c.text, got, want)
		}
	}
}

// TestUserIsAWord checks that a user name is kept at positions where it may be an ordinary word.
func TestUserIsAWord(t *testing.T) {
	r, _ := record(t, "192.0.2.1",
		store.Step{Kind: store.KindHelo, Text: []byte("user")},
		store.Step{Kind: store.KindFinding, Text: []byte("helo-word"), Arg: []byte("User"), By: []byte("helo"), Match: []byte("user")},
		store.Step{Kind: store.KindAuth, Text: []byte("USER"), Result: smtp.ResultFail},
		store.Step{Kind: store.KindFinding, Text: []byte("auth-failure"), Arg: []byte("user"), By: []byte("auth")},
		store.Step{Kind: store.KindRcpt, Text: []byte("user@example.org"), Reply: []byte("no such user: <user>")},
		store.Step{Kind: store.KindCommand, Text: []byte("VRFY user")},
		store.Step{Kind: store.KindCommand, Text: []byte("user x")},
		store.Step{Kind: store.KindVerdict, Text: []byte("user")})
	got := New(subject(t, "user"), nil, '+').Edit(&r)
	want := "user|helo-word User user|(erased)|auth-failure (erased)|user@example.org no such user: <(erased)>|VRFY (erased)|user x|user"
	if got == nil || shown(got) != want {
		t.Errorf("%v\nwant\n%s", shown(got), want)
	}
}

func record(t *testing.T, src string, all ...store.Step) (store.Record, []byte) {
	t.Helper()
	var steps []byte
	for i := range all {
		steps = store.AppendStep(steps, &all[i], time.Millisecond)
	}
	r := store.Record{ID: 7, Start: noon.Add(-time.Second), End: noon, Src: netip.MustParseAddrPort(src + ":25"), Dst: netip.MustParseAddrPort("198.51.100.25:25"),
		RDNS: []byte("erin.example.net"), FCrDNS: smtp.FCrDNSPass, Counts: store.Counts{Commands: 9, Mails: 1}}
	value := store.AppendRecord(nil, &r, steps)
	got, err := store.Decode(store.AppendKey(nil, r.End, r.ID), value)
	if err != nil {
		t.Fatal(err)
	}
	return got, value
}

// shown returns the texts in a record.
func shown(r *store.Record) string {
	if r == nil {
		return ""
	}
	var all []string
	_ = r.Steps(func(s *store.Step) bool {
		all = append(all, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", s.Text, s.Arg, s.Match, s.Reply)), " "))
		return true
	})
	return strings.Join(all, "|")
}

// sample returns a record with a name in every text.
func sample(t *testing.T) (store.Record, []byte) {
	until := noon.Add(time.Hour)
	return record(t, "192.0.2.1",
		store.Step{Kind: store.KindHelo, Text: []byte("[192.0.2.1]"), Arg: []byte("EHLO"), Result: smtp.ResultPermfail, Code: 550, Reply: []byte("not 192.0.2.1")},
		store.Step{Kind: store.KindTLS, Text: []byte("TLSv1.3:x:256")},
		store.Step{Kind: store.KindAuth, Text: []byte("erin"), Result: smtp.ResultPass},
		store.Step{Kind: store.KindMail, Text: []byte("erin@example.org"), Result: smtp.ResultOK, MsgID: 3},
		store.Step{Kind: store.KindRcpt, Text: []byte("carol@example.org"), Result: smtp.ResultOK},
		store.Step{Kind: store.KindCommit, Size: 99},
		store.Step{Kind: store.KindMail, Result: smtp.ResultOK},
		store.Step{Kind: store.KindCommand, Text: []byte("VRFY erin"), Code: 502, Reply: []byte("no")},
		store.Step{Kind: store.KindFinding, Text: []byte("cloud"), Arg: []byte("192.0.2.1"), Org: []byte("Example"), By: []byte("cidr"), Match: []byte("192.0.2.0/24"), Confidence: []byte("high")},
		store.Step{Kind: store.KindVerdict, Text: []byte("rule"), Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Enforced: true, Rule: 5},
		store.Step{Kind: store.KindFilter, Phase: smtp.PhaseRcptTo, Decision: smtp.Reject, Reply: []byte("550 192.0.2.1")},
		store.Step{Kind: store.KindBan, Text: []byte("rule"), Prefix: netip.MustParsePrefix("192.0.2.1/32"), Until: until, Enforced: true})
}

// TestEditOwn checks that only times, counts, evidence and decisions are kept in a session from the
// person's address.
func TestEditOwn(t *testing.T) {
	r, value := sample(t)
	got := New(subject(t, "192.0.2.1"), nil, '+').Edit(&r)
	if got == nil || !got.Erased || got.Src.IsValid() || got.RDNS != nil || got.FCrDNS != smtp.FCrDNSUnknown || got.Counts != r.Counts || got.Dst != r.Dst ||
		got.ID != r.ID || !got.Start.Equal(r.Start) || !got.End.Equal(r.End) {
		t.Fatalf("%+v", got)
	}
	want := "EHLO|TLSv1.3:x:256|(erased)|(erased)|(erased)||||(erased)|cloud|rule||rule"
	want = strings.Replace(want, "(erased)||||", "(erased)|||", 1)
	if shown(got) != want {
		t.Errorf("%s\nwant\n%s", shown(got), want)
	}
	was, is := r.Cursor(), got.Cursor()
	var a, b store.Step
	for was.Next(&a) {
		if !is.Next(&b) || a.Kind != b.Kind || a.At != b.At || a.Result != b.Result || a.Code != b.Code || a.Size != b.Size || a.MsgID != b.MsgID || a.Decision != b.Decision ||
			a.Enforced != b.Enforced || a.Rule != b.Rule || !a.Until.Equal(b.Until) || string(a.Org) != string(b.Org) || string(a.Confidence) != string(b.Confidence) || b.Prefix.IsValid() {
			t.Errorf("step %+v has become %+v", a, b)
		}
	}
	again, err := store.Decode(store.AppendKey(nil, got.End, got.ID), store.AppendRecord(nil, got, steps(got)))
	if err != nil || !again.Erased {
		t.Errorf("%+v, %v", again, err)
	}
	if len(value) == 0 || New(subject(t, "192.0.2.1"), nil, '+').Edit(&again) != nil {
		t.Error("a second erasure changes the record again")
	}
}

func steps(r *store.Record) (b []byte) {
	var last time.Duration
	_ = r.Steps(func(s *store.Step) bool {
		b = store.AppendStep(b, s, s.At-last)
		last = s.At
		return true
	})
	return b
}

// TestEditOther checks that the person's name is replaced in the sessions of other clients. Other
// texts must not change, and neither must sessions without the name.
func TestEditOther(t *testing.T) {
	r, _ := sample(t)
	got := New(subject(t, "erin@example.org"), nil, '+').Edit(&r)
	want := strings.Replace(shown(&r), "erin@example.org", Marker, 1)
	if got == nil || shown(got) != want || got.Src != r.Src || got.Erased || string(got.RDNS) != "erin.example.net" {
		t.Errorf("%s\nwant\n%s", shown(got), want)
	}
	for _, who := range []string{"198.51.100.1", "dave", "dave@example.org", "erin.example.net@example.org"} {
		if got := New(subject(t, who), nil, '+').Edit(&r); got != nil {
			t.Errorf("%s: %s", who, shown(got))
		}
	}
	got = New(subject(t, "192.0.2.1"), nil, '+').Edit(&store.Record{ID: 1, End: noon, RDNS: []byte("x.192.0.2.1")})
	if got != nil {
		t.Errorf("%+v", got)
	}
	sum, _ := record(t, "203.0.113.9", store.Step{Kind: store.KindBan, Text: []byte("rule"), Prefix: netip.MustParsePrefix("192.0.2.1/32"), Until: noon})
	sum.Src = netip.AddrPort{}
	sum.Sessions = 9
	got = New(subject(t, "192.0.2.0/24"), nil, '+').Edit(&sum)
	if got == nil || got.Erased || got.Sessions != 9 {
		t.Fatalf("%+v", got)
	}
	_ = got.Steps(func(s *store.Step) bool {
		if s.Prefix.IsValid() {
			t.Errorf("%+v", s)
		}
		return true
	})
}

func FuzzReplaced(f *testing.F) {
	f.Add("erin@example.org", "a <erin@example.org> 192.0.2.1")
	f.Add("192.0.2.1", "[IPv6:::ffff:192.0.2.1]:")
	f.Fuzz(func(t *testing.T, who, line string) {
		s, err := Parse(who)
		if err != nil || strings.Contains(Marker, strings.ToLower(who)) {
			return
		}
		e := New(s, nil, '+')
		for at := nowhere; at <= brackets; at++ {
			got := bytes.Clone(e.replaced([]byte(line), 1, at))
			if from, _ := e.find(got, 0, at); from >= 0 && !strings.Contains(string(s.name), Marker) {
				t.Errorf("%q remains in %q of %q", who, got, line)
			}
		}
	})
}
