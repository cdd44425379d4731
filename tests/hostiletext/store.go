package hostiletext

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"time"

	"scanwatch/internal/smtp"

	"scanwatch/filter/memory"
	"scanwatch/store"
)

// Domain is the recipients' domain in Store.
const Domain = "example.org"

// firstID is the session id of the first text.
const firstID = 0xa000

// SessionID returns the id of the session that Store creates for text i.
func SessionID(i int) string { return fmt.Sprintf("%016x", firstID+i) }

// Addr returns the source of the session with text number i.
func Addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}) }

// Store creates a state directory with a session for each text. Every field of every kind of step
// in the session contains the text. The directory also contains bans with these texts. All events
// are in the half hour before now.
func Store(dir string, now time.Time) error {
	w := store.Open(dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	m := memory.New()
	texts := Texts()
	rules := make([]string, len(texts))
	for i, text := range texts {
		rules[i] = "rule " + text.Text
	}
	w.Rules(rules)
	for i, text := range texts {
		end := now.Add(time.Duration(i-len(texts))*20*time.Second - time.Minute)
		s := []byte(cut(text.Text, 1000)) // the filter truncates text to this length
		r := store.Record{
			Start: end.Add(-time.Second), End: end, Src: netip.AddrPortFrom(Addr(i), 4711), Dst: netip.MustParseAddrPort("192.0.2.25:25"),
			RDNS: s, FCrDNS: smtp.FCrDNSFail, Ending: smtp.EndingRejected, Omitted: 1,
			Counts: store.Counts{Commands: 20, Unknown: 1, Failed: 3, Mails: 1, RcptOK: 1, RcptPermfail: 1, AuthPass: 1, AuthFail: 1},
		}
		w.Add(end, firstID+uint64(i), store.AppendRecord(nil, &r, steps(s, store.RuleRef(rules[i]))))
		m.Bans.Add(&memory.Client{Addr: Addr(i)}, memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: string(s), Session: firstID + uint64(i)}, end.UnixMicro())
		m.Bans.AddPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 24), time.Hour, string(s), now.UnixMicro())
	}
	state := store.OpenState(dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: m.Changes, Rewrite: m.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { m.Load(all, now.UnixMicro()) }})
	return errors.Join(w.Close(), state.Flush(context.Background()), state.Close())
}

// steps returns the steps of a session in which every name is s.
func steps(s []byte, rule uint32) (b []byte) {
	until := time.Date(2026, 11, 3, 12, 0, 0, 0, time.UTC)
	at := func(suffix string) []byte { return append([]byte(cut(string(s), 200)), suffix...) }
	for _, step := range []store.Step{
		{Kind: store.KindGreeting, Text: s, Arg: s, Reply: s},
		{Kind: store.KindHelo, Arg: []byte("EHLO"), Text: s, Result: smtp.ResultOK, Code: 250, Reply: s},
		{Kind: store.KindHelo, Arg: s, Text: s, Result: smtp.ResultPermfail, Code: 501, Reply: s},
		{Kind: store.KindTLS, Text: s},
		{Kind: store.KindAuth, Text: s, Result: smtp.ResultFail},
		{Kind: store.KindAuth, Text: s, Result: smtp.ResultPass},
		{Kind: store.KindCommand, Text: s, Code: 500, Reply: s},
		{Kind: store.KindInput, Text: s, Code: 500, Reply: s},
		{Kind: store.KindMail, Text: at("@example.net"), Result: smtp.ResultOK, Code: 250, Reply: s, MsgID: 1},
		{Kind: store.KindRcpt, Text: at("@" + Domain), Result: smtp.ResultPermfail, Code: 550, Reply: s},
		{Kind: store.KindRcpt, Text: at("@" + Domain), Result: smtp.ResultOK, Code: 250, Reply: s},
		{Kind: store.KindData, Text: s, Result: smtp.ResultOK, Code: 354, Reply: s},
		{Kind: store.KindFinding, Text: []byte("scanner"), Arg: s, Org: s, By: s, Match: s, Confidence: []byte("high")},
		{Kind: store.KindFinding, Text: []byte("botnet-helo"), Arg: s, Org: s, By: []byte("helo"), Match: s, Confidence: s},
		{Kind: store.KindFinding, Text: s, Arg: s, Org: s, By: s, Match: s, Confidence: s}, // step written by a newer version, or damaged on disk
		{Kind: store.KindVerdict, Text: s, Arg: s, Reply: s, Rule: rule, Phase: smtp.NumPhases, Decision: 200, Enforced: true},
		{Kind: store.KindVerdict, Text: s, Phase: smtp.PhaseConnect, Decision: smtp.Disconnect, Banned: true, Session: 7, Enforced: true},
		{Kind: store.KindFilter, Text: s, Arg: s, Reply: s, Phase: smtp.NumPhases},
		{Kind: store.KindTag, Text: s, Arg: s},
		{Kind: store.KindListed, Text: s, Arg: s, Match: s, Result: smtp.ResultFail},
		{Kind: store.KindBan, Text: s, Arg: s, Reply: s, Match: s, By: s, Exempt: string(s), Rule: rule},
		{Kind: store.KindBan, Text: s, Prefix: netip.MustParsePrefix("203.0.113.77/32"), Until: until, Enforced: true, Rule: rule},
		{Kind: store.KindCommit, Text: s, Size: 1234},
		{Kind: 250, Text: s, Arg: s, Reply: s}, // from a newer version
	} {
		b = store.AppendStep(b, &step, 10*time.Millisecond)
	}
	return b
}

func cut(s string, most int) string { return s[:min(len(s), most)] }

// Stream returns smtpd's lines for sessions that each contain one of the texts. The lines include
// all events and requests that can contain text from clients. Because the protocol consists of
// lines, these texts contain neither line feeds nor NUL.
func Stream() []byte {
	var b strings.Builder
	b.WriteString("config|smtpd-version|7.9.0\nconfig|protocol|0.7\nconfig|smtp-session-timeout|300\nconfig|subsystem|smtp-in\nconfig|admd|mx.example.org\nconfig|ready\n")
	for i, text := range Texts() {
		s := strings.NewReplacer("\n", "", "\x00", "").Replace(text.Text)
		name := strings.ReplaceAll(s, "|", "")
		at, id := 1795219328+10*i, SessionID(i)
		report := func(event, fields string) {
			fmt.Fprintf(&b, "report|0.7|%d.%06d|smtp-in|%s|%s%s\n", at, b.Len()%1000000, event, id, fields)
		}
		ask := func(phase, fields string) {
			fmt.Fprintf(&b, "filter|0.7|%d.%06d|smtp-in|%s|%s|00000000000000aa|%s\n", at, b.Len()%1000000, phase, id, fields)
		}
		says := func(line, reply string) {
			report("protocol-client", "|"+line)
			report("protocol-server", "|"+reply)
		}
		report("link-connect", fmt.Sprintf("|%s|pass|%s:4711|192.0.2.25:25", cut(name, 200)+"x.shodan.io", Addr(i)))
		ask("connect", name+"|"+Addr(i).String())
		report("link-greeting", "|mx.example.org")
		report("filter-response", "|"+name+"|"+name+"|"+s)
		report("protocol-client", "|EHLO "+s)
		ask("ehlo", s)
		report("link-identify", "|EHLO|"+name)
		report("protocol-server", "|250 "+s)
		report("link-tls", "|"+s)
		says("HELO "+s, "501 "+s)
		says(s, "500 "+s)
		says("GET /"+s+" HTTP/1.1", "500 "+s)
		says("User-Agent: Expanse, a Palo Alto Networks company, "+s, "500 "+s)
		says("SSH-2.0-"+s, "500 "+s)
		says("AUTH "+s, "503 "+s)
		report("link-auth", "|fail|"+s)
		report("protocol-client", "|MAIL FROM:<"+s+">")
		ask("mail-from", s)
		report("tx-begin", "|0000abcd")
		report("tx-mail", "|0000abcd|ok|"+s)
		report("protocol-server", "|250 "+s)
		for _, to := range []string{s + "@" + Domain, "x@" + s} {
			report("protocol-client", "|RCPT TO:<"+to+">")
			ask("rcpt-to", to)
			report("tx-rcpt", "|0000abcd|permfail|"+to)
			report("protocol-server", "|550 Invalid recipient: <"+to+">")
		}
		report(name, "|"+s)
		ask(name, s)
		report("tx-rollback", "|0000abcd")
		report("link-disconnect", "")
	}
	return []byte(b.String())
}
