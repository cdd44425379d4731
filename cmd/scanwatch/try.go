package main

// The verb test: what a configuration would do with a session.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

const testHelp = `The configuration is the one of -f, or --policy open, standard or tight.
Of the session one tells what matters; it goes as far as the flags go:
  --src ADDRESS        where it comes from
  --dst ADDRESS:PORT   the listener (192.0.2.25:25)
  --rdns NAME          reverse DNS name, none if left out
  --fcrdns pass|fail   whether the name leads back (pass, if there is one)
  --helo NAME          EHLO identity
  --line TEXT          a command that smtpd does not know; may be repeated
  --auth USER          a login that succeeds, --guess USER one that fails
  --mail-from ADDRESS  the sender
  --rcpt ADDRESS       a recipient that smtpd accepts; may be repeated
  --refuse ADDRESS     one that it refuses; may be repeated
Or --stream FILE plays a recorded stream, of which --session ID chooses one.
With --enforce the policy acts as in mode enforce. -v shows every rule.`

// words is a flag that may be repeated. Several of them share one list, so
// that their order is kept.
type words struct {
	kind string
	list *[][2]string
}

func (w words) String() string { return "" }
func (w words) Set(s string) error {
	*w.list = append(*w.list, [2]string{w.kind, s})
	return nil
}

func try(e *env, args []string) error {
	policy := e.flags.String("policy", "", "")
	enforce := e.flags.Bool("enforce", false, "")
	verbose := e.flags.Bool("v", false, "")
	asJSON := e.flags.Bool("json", false, "")
	src := e.flags.String("src", "", "")
	dst := e.flags.String("dst", "192.0.2.25:25", "")
	rdns := e.flags.String("rdns", "", "")
	fcrdns := e.flags.String("fcrdns", "", "")
	stream := e.flags.String("stream", "", "")
	only := e.flags.String("session", "", "")
	var steps [][2]string
	for _, kind := range []string{"helo", "line", "auth", "guess", "mail-from", "rcpt", "refuse"} {
		e.flags.Var(words{kind, &steps}, kind, "")
	}
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	var c *config.Config
	if *policy != "" {
		c, err = config.Ready(*policy, lists)
	} else {
		var name string
		if name, err = e.chosen(nil); err == nil {
			c, err = config.Load(name, lists, nil, false)
		}
	}
	if err != nil {
		return err
	}
	for _, n := range c.Notes {
		fmt.Fprintln(e.err, "warning:", n)
	}
	p := c.Policy
	if *enforce {
		p = p.InMode(rules.Enforce)
	}

	var in []byte
	switch {
	case *stream != "":
		if in, err = os.ReadFile(*stream); err != nil {
			return err
		}
	case *src == "":
		return usage("test: --src or --stream is needed\nusage: scanwatch %s %s", e.verb.name, e.verb.args)
	default:
		if in, err = invent(*src, *dst, *rdns, *fcrdns, steps); err != nil {
			return usageError{err}
		}
	}
	t := trial{verbose: *verbose, only: *only}
	if err := t.run(in, p, c, lists); err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(e.out).Encode(t.sessions)
	}
	for i, s := range t.sessions {
		if i > 0 {
			fmt.Fprintln(e.out)
		}
		s.print(e.out)
	}
	if len(t.sessions) == 0 {
		return fmt.Errorf("no such session in the stream")
	}
	return nil
}

// invent writes the lines that smtpd would send for a session.
func invent(src, dst, rdns, fcrdns string, steps [][2]string) ([]byte, error) {
	from, err := netip.ParseAddrPort(src)
	if err != nil {
		a, err := netip.ParseAddr(src)
		if err != nil {
			return nil, fmt.Errorf("test: --src %q is no address", src)
		}
		from = netip.AddrPortFrom(a, 40000)
	}
	if _, _, err := net.SplitHostPort(dst); err != nil {
		return nil, fmt.Errorf("test: --dst %q is not ADDRESS:PORT", dst)
	}
	switch {
	case fcrdns == "" && rdns != "":
		fcrdns = "pass"
	case fcrdns == "":
		fcrdns = "fail"
	case fcrdns != "pass" && fcrdns != "fail" && fcrdns != "error":
		return nil, fmt.Errorf("test: --fcrdns %q is neither pass nor fail", fcrdns)
	}
	if rdns == "" {
		rdns = "<unknown>"
	}
	var b bytes.Buffer
	at := 0
	line := func(head, rest string) {
		at += 100
		fmt.Fprintf(&b, "%s|0.7|1000000000.%06d|smtp-in|%s\n", head, at, oneLine(rest))
	}
	const id = "|0000000000000001|"
	report := func(event, rest string) { line("report", strings.TrimSuffix(event+id+rest, "|")) }
	ask := func(phase, rest string) { line("filter", phase+id+"0000000000000001|"+rest) }
	client := func(s string) { report("protocol-client", s) }
	server := func(s string) { report("protocol-server", s) }

	b.WriteString("config|ready\n")
	report("link-connect", rdns+"|"+fcrdns+"|"+from.String()+"|"+dst)
	ask("connect", rdns+"|"+from.Addr().String())
	server("220 mx.example.org ESMTP OpenSMTPD")
	open := false
	for _, s := range steps {
		kind, v := s[0], s[1]
		if open = open || kind == "mail-from"; !open && (kind == "rcpt" || kind == "refuse") {
			return nil, fmt.Errorf("test: a recipient needs --mail-from before it")
		}
		switch kind {
		case "helo":
			client("EHLO " + v)
			ask("ehlo", v)
			report("link-identify", "EHLO|"+v)
			server("250 mx.example.org Hello")
		case "line":
			client(v)
			server("500 5.5.1 Invalid command: Command unrecognized")
		case "auth":
			client("AUTH PLAIN")
			report("link-auth", "pass|"+v)
			server("235 2.0.0 Authentication succeeded")
		case "guess":
			client("AUTH PLAIN")
			report("link-auth", "fail|"+v)
			server("535 Authentication failed")
		case "mail-from":
			client("MAIL FROM:<" + v + ">")
			ask("mail-from", v)
			server("250 2.0.0 Ok")
			report("tx-mail", "00000001|ok|"+v)
		case "rcpt", "refuse":
			client("RCPT TO:<" + v + ">")
			ask("rcpt-to", v)
			if kind == "rcpt" {
				server("250 2.1.5 Ok")
				report("tx-rcpt", "00000001|ok|"+v)
			} else {
				server("550 Invalid recipient")
				report("tx-rcpt", "00000001|permfail|"+v)
			}
		}
	}
	if i := slices.IndexFunc(steps, func(s [2]string) bool { return s[0] == "rcpt" }); i >= 0 {
		client("DATA")
		ask("data", "")
		server("354 Go on")
		report("tx-data", "00000001|ok")
		client(".")
		ask("commit", "")
		server("250 2.0.0 accepted")
		report("tx-commit", "00000001|100")
	}
	report("link-disconnect", "")
	return b.Bytes(), nil
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == 0 {
			return '?'
		}
		return r
	}, s)
}

// trial plays streams to a policy and notes what came of it.
type trial struct {
	verbose  bool
	only     string // session id; empty for all
	sessions []*tried
	live     map[uint64]*tried
}

// tried is a session as it went.
type tried struct {
	Session  string  `json:"session"`
	Mode     string  `json:"mode"`
	Phases   []asked `json:"phases"`
	Findings []found `json:"findings"`

	gone bool // was disconnected
}

// asked is one request that was put to the policy.
type asked struct {
	Phase    string   `json:"phase"`
	About    string   `json:"about,omitempty"`
	Evidence []string `json:"evidence,omitempty"`
	Weak     []string `json:"weak_evidence,omitempty"`
	Score    int      `json:"score"`
	Rules    []string `json:"rules,omitempty"`
	Decision string   `json:"decision"`
	Would    string   `json:"would,omitempty"`
	Reply    string   `json:"reply,omitempty"`
	Hold     string   `json:"hold,omitempty"`
}

// found is a piece of evidence with its proof.
type found struct {
	Evidence     string `json:"evidence"`
	Organisation string `json:"organisation,omitempty"`
	By           string `json:"by"`
	Match        string `json:"match,omitempty"`
	Proof        string `json:"proof,omitempty"`
	Confidence   string `json:"confidence"`
	Source       string `json:"source,omitempty"` // of the row that matched
}

func (t *trial) run(in []byte, p *rules.Policy, c *config.Config, lists *lookup.Lists) error {
	t.live = make(map[uint64]*tried)
	table := session.NewTable(session.Options{
		Log:   func([]byte) {},
		Lists: func() *lookup.Lists { return lists },
		Trace: t.trace,
		Record: func(end time.Time, id uint64, value []byte) {
			r, err := store.Decode(store.AppendKey(nil, end, id), value)
			s := t.session(id, p)
			if err != nil || s == nil {
				return
			}
			_ = r.Steps(func(st *store.Step) bool { // it was encoded a moment ago
				if st.Kind == store.KindFinding {
					s.Findings = append(s.Findings, found{
						printable(st.Text), printable(st.Org), printable(st.By), printable(st.Match), printable(st.Arg), printable(st.Confidence), source(lists, st)})
				}
				return true
			})
			delete(t.live, id)
		},
	})
	table.Use(&session.Settings{Policy: p, ASN: c.ASN, Country: c.Country})
	if err := filter.Serve(bytes.NewReader(in), io.Discard, table, filter.Options{}); err != nil {
		return err
	}
	table.Stop()
	return nil
}

// source tells where the row of a finding comes from.
func source(lists *lookup.Lists, st *store.Step) string {
	for _, row := range lists.Rows() {
		if len(st.Org) > 0 && row.Org == string(st.Org) && row.Value == string(st.Match) {
			return row.Source
		}
	}
	return ""
}

func printable(b []byte) string { return store_report.Printable(b) }

// session returns the notes on a session, or nil if it was not asked for.
func (t *trial) session(id uint64, p *rules.Policy) *tried {
	name := fmt.Sprintf("%016x", id)
	if t.only != "" && t.only != name {
		return nil
	}
	s := t.live[id]
	if s == nil {
		s = &tried{Session: name, Mode: p.Mode.String(), Phases: []asked{}, Findings: []found{}}
		t.live[id] = s
		t.sessions = append(t.sessions, s)
	}
	return s
}

func (t *trial) trace(p *rules.Policy, f *rules.Facts, r filter.Reply) {
	s := t.session(f.Session, p)
	if s == nil || s.gone || !p.Phases().Has(f.Phase) {
		return // smtpd would not ask
	}
	s.gone = r.Decision == filter.Disconnect
	v, traces := p.Explain(f)
	a := asked{Phase: f.Phase.String(), Score: v.Total, Decision: r.Decision.String(), Reply: r.Text}
	switch f.Phase {
	case rules.Helo:
		a.About = printable(f.Helo)
	case rules.MailFrom:
		a.About = "<" + printable(f.MailFrom) + ">"
	case rules.RcptTo:
		a.About = "<" + printable(f.RcptTo) + ">"
	}
	if f.Evidence != 0 {
		a.Evidence = strings.Split(f.Evidence.String(), ",")
	}
	if f.Weak != 0 {
		a.Weak = strings.Split(f.Weak.String(), ",")
	}
	if v.Would.Rule != nil {
		a.Would = v.Would.Decision.String()
		a.Reply = rules.Reply(v.Would.Text, f.Session)
	}
	if r.Hold > 0 {
		a.Hold = r.Hold.String()
	}
	for _, tr := range traces {
		if text := t.rule(&tr); text != "" {
			a.Rules = append(a.Rules, text)
		}
	}
	s.Phases = append(s.Phases, a)
}

// rule tells how a rule came out, if that is worth a line.
func (t *trial) rule(tr *rules.Trace) string {
	name := "pass"
	if r, ok := tr.Statement.(*rules.Rule); ok {
		name = "rule " + r.Name
	}
	unsure := ""
	var why []string
	for _, c := range tr.Conds {
		why = append(why, fmt.Sprintf("%s (%s): %v", c.Cond, c.Fact, c.Answer))
		if c.Answer == rules.Unknown {
			unsure = " could not tell"
		}
	}
	reasons := strings.Join(why, ", ")
	switch {
	case tr.Skipped != "":
		if !t.verbose {
			return ""
		}
		return name + ": not tried, " + tr.Skipped
	case tr.Decided:
		return name + " decides: " + reasons
	case tr.Matched:
		return name + " matches: " + reasons
	case unsure != "" && t.verbose:
		return name + unsure + ": " + reasons
	case t.verbose:
		return name + " does not match: " + reasons
	}
	return ""
}

func (s *tried) print(w io.Writer) {
	fmt.Fprintf(w, "Session %s, mode %s\n", s.Session, s.Mode)
	for _, f := range s.Findings {
		fmt.Fprintf(w, "  %s (%s) by %s", f.Evidence, f.Confidence, f.By)
		if f.Match != "" {
			fmt.Fprintf(w, ", matches %s", f.Match)
		}
		if f.Organisation != "" {
			fmt.Fprintf(w, ", %s", f.Organisation)
		}
		fmt.Fprintln(w)
		if f.Proof != "" && f.Proof != f.Match {
			fmt.Fprintf(w, "      proof  %s\n", f.Proof)
		}
		if f.Source != "" {
			fmt.Fprintf(w, "      source %s\n", f.Source)
		}
	}
	for _, a := range s.Phases {
		fmt.Fprintln(w, strings.TrimSpace(a.Phase+" "+a.About))
		if len(a.Evidence) > 0 {
			fmt.Fprintf(w, "    evidence %s\n", strings.Join(a.Evidence, " "))
		}
		if len(a.Weak) > 0 {
			fmt.Fprintf(w, "    weak     %s\n", strings.Join(a.Weak, " "))
		}
		if a.Score != 0 {
			fmt.Fprintf(w, "    score    %d\n", a.Score)
		}
		for _, r := range a.Rules {
			fmt.Fprintf(w, "    %s\n", r)
		}
		if a.Would != "" {
			fmt.Fprintf(w, "  = %s; observe: would %s", a.Decision, a.Would)
		} else {
			fmt.Fprintf(w, "  = %s", a.Decision)
		}
		if a.Reply != "" {
			fmt.Fprintf(w, " %q", a.Reply)
		}
		if a.Hold != "" {
			fmt.Fprintf(w, " after %s", a.Hold)
		}
		fmt.Fprintln(w)
	}
	if len(s.Phases) == 0 {
		fmt.Fprintln(w, "  smtpd would ask for no decision")
	}
}
