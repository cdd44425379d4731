package journal

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/track"
	"scanwatch/internal/smtp"
)

// TestChangedDecisions checks that an enforced decision is logged even if the same decision was
// observed or withheld less than ten minutes before. TestChangedDecisions also checks that every
// ban is logged.
func TestChangedDecisions(t *testing.T) {
	var log []string
	j := New(Options{Log: func(line []byte) { log = append(log, string(line)) }, Record: func(time.Time, uint64, []byte) {}})
	at := noon.UnixMicro()
	play := func(o smtp.Outcome) {
		at += 1e6
		s, st := &track.Session{ID: uint64(at), Src: netip.MustParseAddrPort("192.0.2.1:25"), Start: at}, new(State)
		j.Begin(st, at)
		o.Time = at
		j.Outcome(s, st, &o)
		j.End(s, st, Close{At: at, Ending: smtp.EndingQuit})
	}
	verdict := smtp.Outcome{Kind: smtp.OutcomeVerdict, Rule: "r", Phase: smtp.PhaseHelo, Decision: smtp.Reject}
	withheld, enforced := verdict, verdict
	withheld.Exempt, enforced.Enforced = "trusted", true
	ban := smtp.Outcome{Kind: smtp.OutcomeBan, Rule: "r", Prefix: netip.MustParsePrefix("192.0.2.1/32"), Until: noon.Add(time.Hour), Times: 1}
	exempt, banned := ban, ban
	exempt.Exempt, banned.Enforced = "known", true
	for range 2 {
		for _, o := range []smtp.Outcome{verdict, withheld, enforced, ban, exempt, banned} {
			play(o)
		}
	}
	j.Flush(at, true)
	want := []string{
		"session would=reject", "session would=reject", "session decision=reject", "observed-ban ", "exempt ", "banned ", "banned ",
		"sessions kind=observed rule=r src=192.0.2.1 more=1 ", "sessions kind=withheld rule=r src=192.0.2.1 more=1 ", "sessions rule=r src=192.0.2.1 more=1 ",
		"bans kind=observed rule=r src=192.0.2.1 more=1 ", "bans kind=exempt rule=r src=192.0.2.1 more=1 ",
	}
	for i := range want {
		if len(log) != len(want) || !strings.HasPrefix(log[i], want[i]) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(log, "\n"), strings.Join(want, "\n"))
		}
	}
}
