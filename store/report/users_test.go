package report

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// TestUsers checks that failed logins from a user's own networks are not reported as
// attacks, in sessions and in aggregates. All text must be printable.
func TestUsers(t *testing.T) {
	start := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	c, n := NewUsers(), 0
	add := func(src string, mails int, sessions uint32, steps ...store.Step) {
		t.Helper()
		var b []byte
		r := store.Record{End: start.Add(time.Duration(n) * time.Minute), Sessions: sessions}
		n++
		if src != "" {
			r.Src = netip.AddrPortFrom(netip.MustParseAddr(src), 25)
		}
		for i := range steps {
			if steps[i].Result == smtp.ResultPass {
				r.Counts.AuthPass++
			} else {
				r.Counts.AuthFail++
			}
			b = store.AppendStep(b, &steps[i], 0)
		}
		r.Counts.Mails, r.Counts.RcptOK = uint32(mails), 2*uint32(mails)
		rec, err := store.Decode(store.AppendKey(nil, r.End, uint64(n)), store.AppendRecord(nil, &r, b))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Add(&rec); err != nil {
			t.Error(err)
		}
	}
	auth := func(user string, result smtp.Result) store.Step {
		return store.Step{Kind: store.KindAuth, Text: []byte(user), Result: result}
	}
	add("192.0.2.7", 0, 0, auth("erin", smtp.ResultFail)) // her own mistake
	add("192.0.2.9", 3, 0, auth("erin", smtp.ResultPass))
	add("2001:db8:1:2::3", 1, 0, auth("Erin", smtp.ResultPass))
	for i := range 5 {
		add(fmt.Sprintf("198.51.%d.1", i), 0, 0, auth("ERIN", smtp.ResultFail), auth("x\x1b[31m", smtp.ResultFail))
	}
	guesses := auth("erin", smtp.ResultFail)
	guesses.Count, guesses.Times = 40, 20
	further := auth("", smtp.ResultFail)
	further.Count = 7
	add("203.0.113.1", 0, 20, guesses, further)
	add("198.51.0.1", 0, 0, auth("bob", smtp.ResultFail)) // an old password
	add("192.0.2.7", 0, 0)                                // no login
	s := c.Summary(start, start.Add(time.Hour), 10, nil)
	want := `{"attacked":[{"user":"erin","failed":45,"networks":6,"logins":2,"last":"2026-11-01T12:08:00.000000Z"},` +
		`{"user":"x\\x1b[31m","failed":5,"networks":5,"logins":0,"last":"2026-11-01T12:07:00.000000Z"}],` +
		`"active":[{"user":"erin","logins":2,"failed":1,"networks":2,"from":["2001:db8:1::/48","192.0.2.0/24"],"messages":4,"recipients":8,"last":"2026-11-01T12:02:00.000000Z"}],` +
		`"not_listed":{"logins of further users":7}}`
	got, err := json.Marshal(struct {
		Attacked  []AttackedUser `json:"attacked"`
		Active    []ActiveUser   `json:"active"`
		NotListed map[string]int `json:"not_listed"`
	}{s.Attacked, s.Active, s.NotListed})
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	var b strings.Builder
	if err := c.Summary(start, start.Add(time.Hour), 1, []string{"a problem"}).Text(&b, time.UTC); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"  ! a problem\n", "        45        6        2  11-01 12:08  erin\n  and 1 more\n",
		"       2       1         4           8  11-01 12:02  erin  2001:db8:1::/48 192.0.2.0/24\n", "         7  logins of further users over the memory limit"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}

// TestUsersLimit checks that a number of networks above the limit is marked as a lower
// bound.
func TestUsersLimit(t *testing.T) {
	c := NewUsers()
	u := c.user([]byte("erin"))
	for i := range maxUserNetworks + 5 {
		r := store.Record{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 1}), 25)}
		c.count(u, &r, 1, false)
	}
	attacked, _ := u.view("erin")
	if attacked.Networks != maxUserNetworks || !attacked.AtLeast || attacked.Failed != maxUserNetworks+5 {
		t.Errorf("%+v", attacked)
	}
}
