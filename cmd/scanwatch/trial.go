package main

// Sessions are played to a configuration, and what comes of it is told.

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/session"
	"scanwatch/rules"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

// A trial plays sessions to a policy. It is the filter.Handler that stands
// between smtpd's lines and the filter's own, to see both and to leave out what
// would not have happened.
type trial struct {
	policy  *rules.Policy
	config  *config.Config
	lists   *lookup.Lists
	verbose bool
	// done is told of each session when it has ended.
	done func(*tried) error

	table  *session.Table
	asked  []filter.ID
	live   map[uint64]*tried
	now    *asked // the request that is being answered
	last   [2]string
	seen   int      // requests in phases that the policy asks in
	ended  []*tried // those still open when the lines ended
	stop   bool
	failed error
}

// tried is a session as it went.
type tried struct {
	Session    string   `json:"session"`
	Mode       string   `json:"mode"`
	Src        string   `json:"src,omitempty"`
	Dst        string   `json:"dst,omitempty"`
	Local      bool     `json:"local,omitempty"`
	RDNS       string   `json:"rdns,omitempty"`
	FCrDNS     string   `json:"fcrdns"`
	ASN        *uint32  `json:"asn,omitempty"` // 0: it belongs to none
	Country    string   `json:"country,omitempty"`
	Phases     []*asked `json:"phases"`
	Later      []found  `json:"later,omitempty"`       // findings after the last phase
	NotReached []string `json:"not_reached,omitempty"` // what the client could not do any more

	start time.Time
	gone  bool // was disconnected
}

// asked is one request that was put to the policy.
type asked struct {
	Phase    string   `json:"phase"`
	About    string   `json:"about,omitempty"`
	Facts    []string `json:"facts,omitempty"`    // what else rules can look at
	Findings []found  `json:"findings,omitempty"` // since the phase before
	Evidence []string `json:"evidence,omitempty"` // of the session so far
	Weak     []string `json:"weak_evidence,omitempty"`
	Score    int      `json:"score"`
	Rules    []ruled  `json:"rules,omitempty"`
	Decision string   `json:"decision"`
	Reply    string   `json:"reply,omitempty"`
	Hold     string   `json:"hold,omitempty"`
	Earlier  bool     `json:"decided_earlier,omitempty"`
	Would    string   `json:"would,omitempty"` // in mode observe
	WouldSay string   `json:"would_reply,omitempty"`

	at time.Time
}

// found is a piece of evidence with its proof.
type found struct {
	Evidence     string `json:"evidence"`
	Organisation string `json:"organisation,omitempty"`
	By           string `json:"by"`
	Match        string `json:"match,omitempty"`
	Proof        string `json:"proof,omitempty"`
	Confidence   string `json:"confidence,omitempty"`
	List         string `json:"list,omitempty"` // of the row that matched
	Line         int    `json:"line,omitempty"`
	Source       string `json:"source,omitempty"` // of the row
}

// ruled is how a rule came out.
type ruled struct {
	Rule       string   `json:"rule"`
	Outcome    string   `json:"outcome"`
	Conditions []string `json:"conditions,omitempty"`
}

// play plays what smtpd says line by line, so that each answer is known before
// the next line is made.
func (t *trial) play(lines iter.Seq[string]) error {
	t.live = make(map[uint64]*tried)
	t.asked = session.Phases(t.policy)
	t.table = session.NewTable(session.Options{
		Log:    func([]byte) {},
		Lists:  func() *lookup.Lists { return t.lists },
		Trace:  t.trace,
		Record: t.record,
	})
	t.table.Use(&session.Settings{Policy: t.policy, ASN: t.config.ASN, Country: t.config.Country})
	next, stop := iter.Pull(lines)
	defer stop()
	if err := filter.Serve(&lineReader{next: next}, answers{t}, t, filter.Options{}); err != nil {
		return err
	}
	t.stop = true
	t.table.Stop()
	slices.SortFunc(t.ended, func(a, b *tried) int {
		return cmp.Or(a.start.Compare(b.start), cmp.Compare(a.Session, b.Session))
	})
	for _, s := range t.ended {
		t.tell(s)
	}
	return t.failed
}

func (t *trial) tell(s *tried) {
	if t.failed == nil {
		t.failed = t.done(s)
	}
}

// lineReader reads one line at a time.
type lineReader struct {
	next func() (string, bool)
	rest string
}

func (r *lineReader) Read(p []byte) (int, error) {
	if r.rest == "" {
		var ok bool
		if r.rest, ok = r.next(); !ok {
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// recorded yields the lines of a stream; over-long ones come in parts.
func recorded(in io.Reader, failed *error) iter.Seq[string] {
	return func(yield func(string) bool) {
		r := bufio.NewReaderSize(in, 64<<10)
		for {
			line, err := r.ReadSlice('\n')
			if len(line) > 0 && !yield(string(line)) {
				return
			}
			if err == io.EOF {
				return
			}
			if err != nil && err != bufio.ErrBufferFull {
				*failed = err
				return
			}
		}
	}
}

// answers takes what the filter says to smtpd: the exact reply is there.
type answers struct{ t *trial }

func (a answers) Write(p []byte) (int, error) {
	t := a.t
	for line := range bytes.Lines(p) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), "|", 5)
		if fields[0] != "filter-result" || len(fields) < 4 {
			continue
		}
		t.last = [2]string{fields[3]}
		if len(fields) == 5 {
			t.last[1] = fields[4]
		}
		if t.now != nil {
			t.now.Decision, t.now.Reply = t.last[0], t.last[1]
		}
	}
	return len(p), nil
}

// Ready implements filter.Handler.
func (t *trial) Ready(c filter.Config) { t.table.Ready(c) }

// Report implements filter.Handler. A client that was disconnected did nothing
// of what a recorded one did after that.
func (t *trial) Report(ev *filter.Event) {
	if s := t.live[ev.Session]; s == nil || !s.gone || ev.ID == filter.LinkDisconnect {
		t.table.Report(ev)
	}
}

// Decide implements filter.Handler.
func (t *trial) Decide(ev *filter.Event) filter.Reply {
	t.now = nil
	s := t.session(ev.Session)
	if s.gone || !slices.Contains(t.asked, ev.ID) {
		return filter.Reply{} // smtpd would not ask
	}
	t.seen++
	r := t.table.Decide(ev)
	if t.now != nil {
		t.now.at = time.UnixMicro(ev.Time)
		if r.Hold > 0 {
			t.now.Hold = r.Hold.String()
		}
	}
	s.gone = ends(r.Decision.String(), r.Text)
	r.Hold = 0 // nobody is made to wait here
	return r
}

func (t *trial) session(id uint64) *tried {
	s := t.live[id]
	if s == nil {
		s = &tried{Session: fmt.Sprintf("%016x", id), Mode: t.policy.Mode.String(), Phases: []*asked{}}
		t.live[id] = s
	}
	return s
}

// trace notes how the policy came to its answer.
func (t *trial) trace(p *rules.Policy, f *rules.Facts, r filter.Reply) {
	s := t.session(f.Session)
	v, traces := p.Explain(f)
	a := &asked{Phase: f.Phase.String(), About: about(f), Facts: facts(f), Score: v.Total}
	if f.ASNKnown {
		asn := f.ASN
		s.ASN = &asn
	}
	s.Country = printable([]byte(f.Country))
	if f.Evidence != 0 {
		a.Evidence = strings.Split(f.Evidence.String(), ",")
	}
	if f.Weak != 0 {
		a.Weak = strings.Split(f.Weak.String(), ",")
	}
	if v.Would.Rule != nil {
		a.Would = v.Would.Decision.String()
		if v.Would.Decision >= rules.Reject {
			a.WouldSay = rules.Reply(v.Would.Text, f.Session)
		}
	}
	a.Earlier = r.Decision != filter.Proceed && v.Act.Rule == nil
	for i := range traces {
		if told, ok := t.rule(&traces[i], f.Phase); ok {
			a.Rules = append(a.Rules, told)
		}
	}
	if f.Phase == rules.End && len(a.Rules) == 0 {
		return // nothing that anybody could look at
	}
	s.Phases = append(s.Phases, a)
	t.now = a
}

// about is what the client has just said.
func about(f *rules.Facts) string {
	switch f.Phase {
	case rules.Helo:
		return printable(f.Helo)
	case rules.MailFrom:
		return "<" + printable(f.MailFrom) + ">"
	case rules.RcptTo:
		return "<" + printable(f.RcptTo) + ">"
	}
	return ""
}

// facts are the facts that are not in the session's head and change on the way.
func facts(f *rules.Facts) (list []string) {
	if f.Auth {
		list = append(list, "logged in: no rule touches the session unless it says auth")
	}
	if f.Local {
		list = append(list, "local: no rule touches the session")
	}
	if f.TLS {
		list = append(list, "over TLS")
	}
	return list
}

// effects adds to an outcome what else the rule does.
func effects(outcome string, r *rules.Rule) string {
	if r != nil && r.Effects() != "" {
		outcome += ": " + r.Effects()
	}
	return outcome
}

// rule tells how a rule came out, and whether that is worth a line.
func (t *trial) rule(tr *rules.Trace, phase rules.Phase) (told ruled, ok bool) {
	r, isRule := tr.Statement.(*rules.Rule)
	told.Rule = "pass"
	if isRule {
		told.Rule = "rule " + r.Name
	}
	if tr.Skipped != "" {
		told.Outcome = "not tried: " + tr.Skipped
		return told, t.verbose
	}
	no, unknown := false, false
	for _, c := range tr.Conds {
		told.Conditions = append(told.Conditions, fmt.Sprintf("%s (%s): %v", c.Cond, c.Fact, c.Answer))
		no = no || c.Answer == rules.No
		unknown = unknown || c.Answer == rules.Unknown
	}
	switch {
	case tr.Decided:
		told.Outcome = effects("decides", r)
	case tr.Matched:
		told.Outcome = effects("matches", r)
	case unknown && !no:
		told.Outcome = "could not tell"
		// A pass statement is tried in all phases, also in those in which
		// its fact is not known yet. All facts are known at rcpt-to.
		return told, t.verbose || isRule || phase == rules.RcptTo
	default:
		told.Outcome = "does not match"
		return told, t.verbose
	}
	return told, true
}

// record completes the notes on a session that has ended, from its record.
func (t *trial) record(end time.Time, id uint64, value []byte) {
	s := t.session(id)
	delete(t.live, id)
	r, err := store.Decode(store.AppendKey(nil, end, id), value)
	if err == nil {
		s.start, s.Local, s.RDNS, s.FCrDNS = r.Start, r.Local, printable(r.RDNS), r.FCrDNS.String()
		if r.Src.IsValid() {
			s.Src = r.Src.Addr().String()
		}
		if r.Dst.IsValid() {
			s.Dst = r.Dst.String()
		}
		err = r.Steps(func(st *store.Step) bool {
			if st.Kind == store.KindFinding {
				s.place(newFound(t.lists, &r, st), r.Start.Add(st.At))
			}
			return true
		})
	}
	if err != nil && t.failed == nil {
		t.failed = fmt.Errorf("session %016x: %w", id, err)
	}
	if t.stop {
		t.ended = append(t.ended, s)
	} else {
		t.tell(s)
	}
}

// place puts a finding to the first phase that knew of it.
func (s *tried) place(f found, at time.Time) {
	for _, a := range s.Phases {
		if !a.at.Before(at) {
			a.Findings = append(a.Findings, f)
			return
		}
	}
	s.Later = append(s.Later, f)
}

// newFound tells of a finding; lists has the row that matched, if it is of one.
func newFound(lists *lookup.Lists, r *store.Record, st *store.Step) found {
	f := found{
		Evidence: printable(st.Text), Organisation: printable(st.Org), By: printable(st.By),
		Match: printable(st.Match), Proof: printable(st.Arg), Confidence: printable(st.Confidence),
	}
	if f.Proof == "" { // it stands in the record's head
		switch f.By {
		case "rdns":
			f.Proof = printable(r.RDNS)
		case "cidr":
			f.Proof = r.Src.Addr().String()
		}
	}
	for _, row := range lists.Rows() {
		if row.Value == string(st.Match) && row.Evidence == string(st.Text) && (len(st.Org) == 0 || row.Org == string(st.Org)) {
			f.Match, f.List, f.Line, f.Source = row.Value, row.List, row.Line, row.Source
			break
		}
	}
	return f
}

func printable(b []byte) string { return store_report.Printable(b) }

// print writes the notes for people.
func (s *tried) print(w *bufio.Writer) {
	fmt.Fprintf(w, "Session %s, mode %s\n", s.Session, s.Mode)
	head := func(name, text string) { put(w, fmt.Sprintf("  %-8s%s", name, text), 10) }
	if s.Local {
		head("from", "the local socket")
	} else {
		head("from", s.Src)
		head("to", s.Dst)
	}
	if s.RDNS == "" {
		head("rdns", "none")
	} else {
		head("rdns", s.RDNS+", fcrdns "+s.FCrDNS)
	}
	switch {
	case s.ASN == nil: // no database, or never asked
	case *s.ASN == 0:
		head("asn", "none known")
	default:
		head("asn", fmt.Sprintf("AS%d", *s.ASN))
	}
	if s.Country != "" {
		head("country", s.Country)
	}
	for _, a := range s.Phases {
		a.print(w)
	}
	if len(s.Phases) == 0 {
		fmt.Fprintln(w, "smtpd would not ask in this session")
	}
	if len(s.Later) > 0 {
		fmt.Fprintln(w, "later")
	}
	for _, f := range s.Later {
		f.print(w)
	}
	if len(s.NotReached) > 0 {
		put(w, "not reached: "+strings.Join(s.NotReached, ", "), 4)
	}
}

func (a *asked) print(w *bufio.Writer) {
	put(w, strings.TrimSpace(a.Phase+" "+a.About), 4)
	for _, f := range a.Facts {
		put(w, "  "+f, 4)
	}
	for _, f := range a.Findings {
		f.print(w)
	}
	line := func(name, text string) { put(w, fmt.Sprintf("  %-9s%s", name, text), 11) }
	if len(a.Evidence) > 0 {
		line("evidence", strings.Join(a.Evidence, " "))
	}
	if len(a.Weak) > 0 {
		line("weak", strings.Join(a.Weak, " "))
	}
	if a.Score != 0 {
		line("score", fmt.Sprint(a.Score))
	}
	for _, r := range a.Rules {
		put(w, "  "+r.Rule+" "+r.Outcome, 6)
		for _, c := range r.Conditions {
			put(w, "    "+c, 6)
		}
	}
	if a.Phase == rules.End.String() {
		return // nobody is there to be answered
	}
	text := "  = " + a.Decision
	if a.Reply != "" {
		text += ": " + a.Reply
	}
	if a.Hold != "" {
		text += ", after " + a.Hold
	}
	if a.Earlier {
		text += " (decided earlier, for the whole session)"
	}
	put(w, text, 4)
	if a.Would != "" {
		text = "  observe: would " + a.Would
		if a.WouldSay != "" {
			text += ": " + a.WouldSay
		}
		put(w, text, 4)
	}
}

func (f *found) print(w *bufio.Writer) {
	text := fmt.Sprintf("  ! %s by %s", f.Evidence, f.By)
	if f.Confidence != "" {
		text += ", confidence " + f.Confidence
	}
	if f.Organisation != "" {
		text += ", " + f.Organisation
	}
	put(w, text, 4)
	line := func(name, text string) { put(w, fmt.Sprintf("    %-8s%s", name, text), 12) }
	if f.Proof != "" {
		line("proof", f.Proof)
	}
	switch {
	case f.List != "":
		line("row", fmt.Sprintf("%s, line %d of list %s", f.Match, f.Line, f.List))
		line("source", f.Source)
	case f.Match != "" && f.Match != f.Proof:
		line("match", f.Match)
	}
}

// columns is the width of a terminal that everybody has.
const columns = 80

// put writes s in lines of at most columns characters where blanks allow it;
// all but the first are indented.
func put(w *bufio.Writer, s string, indent int) {
	for utf8.RuneCountInString(s) > columns {
		at := indexRune(s, columns+1)
		if i := strings.LastIndexByte(s[:at], ' '); i > indent {
			at = i
		} else if i := strings.IndexByte(s[at:], ' '); i >= 0 {
			at += i // one long word: cutting it would spoil it
		} else {
			break
		}
		fmt.Fprintln(w, s[:at])
		s = strings.Repeat(" ", indent) + s[at+1:]
	}
	fmt.Fprintln(w, s)
}

// indexRune is the index of the nth character of s, or its end.
func indexRune(s string, n int) int {
	for i := range s {
		if n--; n < 0 {
			return i
		}
	}
	return len(s)
}
