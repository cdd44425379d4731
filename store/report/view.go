package report

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/sketch"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// A View is a session in JSON. All text is printable.
type View struct {
	Session string     `json:"session"` // 16 hexadecimal digits
	Start   Time       `json:"start"`
	End     Time       `json:"end"`
	Src     string     `json:"src,omitempty"` // address
	SrcPort uint16     `json:"src_port,omitempty"`
	Dst     string     `json:"dst,omitempty"` // address:port of the listener
	Local   bool       `json:"local,omitempty"`
	Erased  bool       `json:"erased,omitempty"` // the operator has removed the source and all names
	RDNS    string     `json:"rdns,omitempty"`
	FCrDNS  string     `json:"fcrdns"`
	Ending  string     `json:"ending"`
	Server  string     `json:"server,omitempty"`    // the mail server; empty: this host
	Front   string     `json:"front_end,omitempty"` // empty: smtpd
	Counts  Counts     `json:"counts"`
	Helo    []Helo     `json:"helo,omitempty"`
	TLS     []Line     `json:"tls,omitempty"`
	Auth    []Auth     `json:"auth,omitempty"`
	Tx      []Tx       `json:"transactions,omitempty"`
	Command []Line     `json:"commands,omitempty"` // unknown and failed commands, and rejected input
	Listing []Listing  `json:"listings,omitempty"`
	Finding []Finding  `json:"findings,omitempty"`
	Verdict []Decision `json:"verdicts,omitempty"`
	Filter  []Decision `json:"filters,omitempty"` // decisions of all filters
	Tags    []Tag      `json:"tags,omitempty"`
	Bans    []Ban      `json:"bans,omitempty"`
	Omitted uint32     `json:"omitted,omitempty"`  // counted steps without a record
	Sum     uint32     `json:"sessions,omitempty"` // number of sessions of an aggregate
	Sources int        `json:"sources,omitempty"`  // estimated number of hosts of an aggregate of many
	// Only aggregates have Recipients and References. In an aggregate, each list element
	// states its number of sessions.
	Recipients []RecipientTally `json:"recipients,omitempty"`
	References []string         `json:"references,omitempty"` // ids of rejected sessions
	Damage     string           `json:"damage,omitempty"`     // the reason why the steps of a corrupt record end early
	steps      []viewStep       // all steps in order, for Show
}

// A RecipientTally counts an aggregate's recipients in a domain.
type RecipientTally struct {
	Domain   string `json:"domain"` // "" for no domain, * for further domains
	Result   string `json:"result"`
	Count    uint32 `json:"recipients"`
	Sessions uint32 `json:"sessions"`
	Most     uint32 `json:"most"` // maximum in one session
}

// A Tag is a tag set by a rule.
type Tag struct {
	At    Seconds `json:"at"`
	Tag   string  `json:"tag"`
	Phase string  `json:"phase"`
}

// A Ban is a ban that a rule imposed or would have imposed.
type Ban struct {
	At       Seconds `json:"at"`
	Rule     string  `json:"rule"`
	Prefix   string  `json:"prefix"`
	Until    string  `json:"until,omitempty"`
	Exempt   string  `json:"exempt,omitempty"` // the reason for withholding the ban
	Enforced bool    `json:"enforced,omitempty"`
	Times    uint32  `json:"sessions,omitempty"` // in an aggregate: number of sessions with the ban
}

// A viewStep is a step with printable text.
type viewStep struct {
	kind                       store.Kind
	at                         Seconds
	text, arg, reply           string
	org, by, match, confidence string
	phase, decision            string
	enforced, banned           bool
	session                    string // empty for a manual ban
	prefix, until, exempt      string
	result                     string
	code                       uint32
	size                       uint64
	msgid                      string
	times, count, most         uint32
}

// Counts are a session's counters.
type Counts struct {
	Commands     uint32 `json:"commands"`
	Unknown      uint32 `json:"unknown"`
	Failed       uint32 `json:"failed"`
	Mails        uint32 `json:"messages"`
	RcptOK       uint32 `json:"rcpt_ok"`
	RcptPermfail uint32 `json:"rcpt_permfail"`
	RcptTempfail uint32 `json:"rcpt_tempfail"`
	AuthPass     uint32 `json:"auth_pass"`
	AuthFail     uint32 `json:"auth_fail"`
	AuthRefused  uint32 `json:"auth_refused"`
}

// A Helo is a greeting from the client.
type Helo struct {
	At   Seconds `json:"at"`
	Verb string  `json:"verb,omitempty"`
	Name string  `json:"name"` // empty for the names that a full aggregate does not list
	Answer
	Times uint32 `json:"sessions,omitempty"` // in an aggregate: number of sessions with the name
}

// An Answer is the server's reply to a command.
type Answer struct {
	Result string `json:"result,omitempty"`
	Code   uint32 `json:"code,omitempty"`
	Reply  string `json:"reply,omitempty"` // not recorded for every reply
}

// A Line is a line from the client or a property of its connection.
type Line struct {
	At   Seconds `json:"at"`
	Line string  `json:"line"` // empty for input that is not a command
	Answer
}

// An Auth is the result of a login attempt.
type Auth struct {
	At     Seconds `json:"at"`
	User   string  `json:"user"` // empty for the users that a full aggregate does not list
	Result string  `json:"result"`
	Count  uint32  `json:"attempts,omitempty"` // in an aggregate: number of attempts
	Times  uint32  `json:"sessions,omitempty"` // in an aggregate: number of sessions with the attempts
}

// A Tx is a complete or incomplete transaction.
type Tx struct {
	At     Seconds `json:"at"`
	MsgID  string  `json:"msgid,omitempty"` // smtpd's message id
	Sender *string `json:"sender"`          // null without MAIL FROM; empty for the null sender
	Answer
	Recipients []Recipient `json:"recipients,omitempty"`
	Data       *Answer     `json:"data,omitempty"`
	End        string      `json:"end,omitempty"` // accepted or rolled-back
	Size       uint64      `json:"size,omitempty"`
}

// A Recipient is a RCPT command with its result.
type Recipient struct {
	At      Seconds `json:"at"`
	Address string  `json:"address"`
	Answer
}

// A Finding is evidence with its proof.
type Finding struct {
	At           Seconds `json:"at"`
	Evidence     string  `json:"evidence"`
	Organisation string  `json:"organisation,omitempty"`
	By           string  `json:"by,omitempty"`
	Match        string  `json:"match,omitempty"` // the matching row of a list
	Confidence   string  `json:"confidence,omitempty"`
	Proof        string  `json:"proof,omitempty"`
	Times        uint32  `json:"sessions,omitempty"` // in an aggregate: number of sessions with the finding
}

// A Listing is a DNS list's answer about the source.
type Listing struct {
	At     Seconds `json:"at"`
	List   string  `json:"list"`
	Zone   string  `json:"zone"`
	Listed bool    `json:"listed"`
	Allow  bool    `json:"allowlist,omitempty"`
	Codes  string  `json:"codes,omitempty"` // separated by commas
}

// A Decision is a decision made by a rule or a filter.
type Decision struct {
	At       Seconds `json:"at"`
	Rule     string  `json:"rule,omitempty"`
	Phase    string  `json:"phase,omitempty"`
	Decision string  `json:"decision"`
	Text     string  `json:"text,omitempty"`
	Enforced bool    `json:"enforced,omitempty"`  // for a rule: the decision took effect
	Withheld string  `json:"withheld,omitempty"`  // the standing that withheld the decision
	BannedIn string  `json:"banned_in,omitempty"` // the session that caused the ban
	Times    uint32  `json:"sessions,omitempty"`  // in an aggregate: number of sessions with the decision
}

// Seconds is the time since the start of the session.
type Seconds time.Duration

// MarshalJSON writes the seconds with six decimal places.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%d.%06d", time.Duration(s)/time.Second, time.Duration(s)%time.Second/time.Microsecond), nil
}

// A Time is written in UTC with microseconds.
type Time = text.Time

// NewView returns the View of a record. The record is not retained.
func NewView(r *store.Record) *View {
	v := &View{
		Session: fmt.Sprintf("%016x", r.ID), Start: text.At(r.Start), End: text.At(r.End),
		Local: r.Local, Erased: r.Erased, RDNS: text.Escape(r.RDNS), FCrDNS: r.FCrDNS.String(), Ending: r.Ending.String(), Server: text.Escape(r.Server), Front: text.Escape(r.FrontEnd),
		Counts: Counts(r.Counts), Omitted: r.Omitted, Sum: r.Sessions,
	}
	if len(r.Sketch) > 0 {
		var s sketch.Sketch
		s.Merge(r.Sketch)
		v.Sources = min(s.Count(), int(r.Sessions))
	}
	if r.Src.IsValid() {
		v.Src, v.SrcPort = r.Src.Addr().String(), r.Src.Port()
	}
	if r.Dst.IsValid() {
		v.Dst = r.Dst.String()
	}
	err := r.Steps(func(s *store.Step) bool {
		p := viewStep{
			kind: s.Kind, at: Seconds(s.At), text: text.Escape(s.Text), arg: text.Escape(s.Arg), reply: text.Escape(s.Reply),
			org: text.Escape(s.Org), by: text.Escape(s.By), match: text.Escape(s.Match), confidence: text.Escape(s.Confidence),
			result: s.Result.String(), code: s.Code, size: s.Size, times: s.Times, count: s.Count, most: s.Most,
		}
		if s.Kind >= store.KindVerdict {
			p.phase, p.decision = text.Escape(s.PhaseName()), text.Escape(s.DecisionName())
			p.enforced, p.banned, p.exempt = s.Enforced, s.Banned, text.Escape(s.Exempt)
		}
		if s.Session != 0 {
			p.session = fmt.Sprintf("%016x", s.Session)
		}
		if s.Prefix.IsValid() {
			p.prefix = s.Prefix.String()
		}
		if !s.Until.IsZero() {
			p.until = s.Until.UTC().Format(text.TimeLayout)
		}
		if s.MsgID != 0 {
			p.msgid = fmt.Sprintf("%08x", s.MsgID)
		}
		v.steps = append(v.steps, p)
		return true
	})
	if err != nil {
		v.Damage = text.Escape(err.Error())
	}
	for i := range v.steps {
		v.addStep(&v.steps[i])
	}
	return v
}

// addStep adds a step to the View's lists.
func (v *View) addStep(s *viewStep) {
	answer := Answer{s.result, s.code, s.reply}
	switch s.kind {
	case store.KindHelo:
		v.Helo = append(v.Helo, Helo{s.at, s.arg, s.text, answer, s.times})
	case store.KindTLS:
		v.TLS = append(v.TLS, Line{At: s.at, Line: s.text})
	case store.KindAuth:
		v.Auth = append(v.Auth, Auth{s.at, s.text, s.result, s.count, s.times})
	case store.KindMail:
		v.Tx = append(v.Tx, Tx{At: s.at, MsgID: s.msgid, Sender: &s.text, Answer: answer})
	case store.KindRcpt:
		if v.Sum > 0 {
			v.Recipients = append(v.Recipients, RecipientTally{strings.TrimPrefix(s.text, "@"), s.result, s.count, s.times, s.most})
			return
		}
		tx := v.tx(s)
		tx.Recipients = append(tx.Recipients, Recipient{s.at, s.text, answer})
	case store.KindData:
		v.tx(s).Data = &answer
	case store.KindCommit:
		tx := v.tx(s)
		tx.End, tx.Size = "accepted", s.size
	case store.KindRollback:
		v.tx(s).End = "rolled-back"
	case store.KindCommand, store.KindInput:
		v.Command = append(v.Command, Line{s.at, s.text, answer})
	case store.KindFinding:
		v.Finding = append(v.Finding, Finding{s.at, s.text, s.org, s.by, s.match, s.confidence, s.arg, s.times})
	case store.KindListed:
		allow := s.result == smtp.ResultPass.String()
		v.Listing = append(v.Listing, Listing{s.at, s.text, s.match, allow || s.result == smtp.ResultFail.String(), allow, s.arg})
	case store.KindVerdict:
		v.Verdict = append(v.Verdict, Decision{At: s.at, Rule: s.text, Phase: s.phase, Decision: s.decision, Enforced: s.enforced, Withheld: s.exempt, BannedIn: s.session, Times: s.times})
	case store.KindBan:
		v.Bans = append(v.Bans, Ban{At: s.at, Rule: s.text, Prefix: s.prefix, Until: s.until, Exempt: s.exempt, Enforced: s.enforced, Times: s.times})
	case store.KindReference:
		v.References = append(v.References, s.session)
	case store.KindTag:
		v.Tags = append(v.Tags, Tag{s.at, s.text, s.phase})
	case store.KindFilter:
		v.Filter = append(v.Filter, Decision{At: s.at, Phase: s.phase, Decision: s.decision, Text: s.reply})
	}
}

// tx returns the last open transaction, or starts a new one for the step.
func (v *View) tx(s *viewStep) *Tx {
	for i := len(v.Tx) - 1; i >= 0; i-- {
		t := &v.Tx[i]
		if t.End != "" {
			break
		}
		refused := t.Sender != nil && t.Result != "" && t.Result != smtp.ResultOK.String()
		if !refused {
			return t
		}
	}
	v.Tx = append(v.Tx, Tx{At: s.at, MsgID: s.msgid})
	return &v.Tx[len(v.Tx)-1]
}

// Lines returns a function that writes a session as a line of JSON.
func Lines(w io.Writer) func(*View) error {
	return func(v *View) error { return text.JSON(w, v, "") }
}

// columns lists the CSV columns.
var columns = []struct {
	name  string
	value func(*View) string
}{
	{"session", func(v *View) string { return v.Session }},
	{"start", func(v *View) string { return v.Start.UTC().Format(text.TimeLayout) }},
	{"end", func(v *View) string { return v.End.UTC().Format(text.TimeLayout) }},
	{"src", func(v *View) string { return v.Src }},
	{"src_port", func(v *View) string { return number(uint32(v.SrcPort)) }},
	{"dst", func(v *View) string { return v.Dst }},
	{"local", func(v *View) string { return strconv.FormatBool(v.Local) }},
	{"erased", func(v *View) string { return strconv.FormatBool(v.Erased) }},
	{"rdns", func(v *View) string { return v.RDNS }},
	{"fcrdns", func(v *View) string { return v.FCrDNS }},
	{"helo", func(v *View) string { return join(v.Helo, func(h *Helo) string { return h.Name }) }},
	{"tls", func(v *View) string { return join(v.TLS, func(l *Line) string { return l.Line }) }},
	{"auth_users", func(v *View) string { return join(v.Auth, func(a *Auth) string { return a.User }) }},
	{"auth_pass", func(v *View) string { return number(v.Counts.AuthPass) }},
	{"auth_fail", func(v *View) string { return number(v.Counts.AuthFail) }},
	{"auth_refused", func(v *View) string { return number(v.Counts.AuthRefused) }},
	{"senders", func(v *View) string {
		return join(v.Tx, func(t *Tx) string {
			if t.Sender == nil {
				return ""
			}
			return "<" + *t.Sender + ">"
		})
	}},
	{"recipients", recipients},
	{"messages", func(v *View) string { return number(v.Counts.Mails) }},
	{"rcpt_ok", func(v *View) string { return number(v.Counts.RcptOK) }},
	{"rcpt_permfail", func(v *View) string { return number(v.Counts.RcptPermfail) }},
	{"rcpt_tempfail", func(v *View) string { return number(v.Counts.RcptTempfail) }},
	{"commands", func(v *View) string { return number(v.Counts.Commands) }},
	{"unknown", func(v *View) string { return number(v.Counts.Unknown) }},
	{"failed", func(v *View) string { return number(v.Counts.Failed) }},
	{"evidence", func(v *View) string { return join(v.Finding, func(f *Finding) string { return f.Evidence }) }},
	{"organisations", func(v *View) string { return join(v.Finding, func(f *Finding) string { return f.Organisation }) }},
	{"rules", func(v *View) string { return join(v.Verdict, func(d *Decision) string { return d.Rule }) }},
	{"tags", func(v *View) string { return join(v.Tags, func(t *Tag) string { return t.Tag }) }},
	{"ending", func(v *View) string { return v.Ending }},
	{"omitted", func(v *View) string { return number(v.Omitted) }},
	{"damage", func(v *View) string { return v.Damage }},
	{"sources", func(v *View) string { return strconv.Itoa(v.Sources) }},
	{"sessions", func(v *View) string { return number(max(v.Sum, 1)) }},
	{"server", func(v *View) string { return v.Server }},
	{"front_end", func(v *View) string { return v.Front }},
}

// recipients lists the distinct recipients of all transactions, or the domains of an
// aggregate.
func recipients(v *View) string {
	var all []Recipient
	for i := range v.Tx {
		all = append(all, v.Tx[i].Recipients...)
	}
	for i := range v.Recipients {
		all = append(all, Recipient{Address: v.Recipients[i].Domain})
	}
	return join(all, func(r *Recipient) string { return r.Address })
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// join returns the distinct texts in the order of their first occurrence.
func join[T any](all []T, text func(*T) string) string {
	var texts []string
	seen := map[string]bool{"": true}
	for i := range all {
		if s := text(&all[i]); !seen[s] {
			seen[s] = true
			texts = append(texts, s)
		}
	}
	return strings.Join(texts, " ")
}

// CSV returns a function that writes a session as a row of comma-separated values (RFC
// 4180). CSV writes the header row immediately. end flushes the output.
func CSV(w io.Writer) (row func(*View) error, end func() error) {
	c := csv.NewWriter(w)
	cells := make([]string, len(columns))
	for i := range columns {
		cells[i] = columns[i].name
	}
	headErr := c.Write(cells)
	row = func(v *View) error {
		for i := range columns {
			cells[i] = text.Cell(columns[i].value(v))
		}
		return cmp.Or(headErr, c.Write(cells))
	}
	return row, func() error { c.Flush(); return cmp.Or(headErr, c.Error()) }
}
