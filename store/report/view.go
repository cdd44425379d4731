package report

import (
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"scanwatch/store"
)

// A View is a session as it is shown: the shape of its JSON. All texts are
// printable.
type View struct {
	Session string      `json:"session"` // 16 hexadecimal digits
	Start   Time        `json:"start"`
	End     Time        `json:"end"`
	Src     string      `json:"src,omitempty"` // address
	SrcPort uint16      `json:"src_port,omitempty"`
	Dst     string      `json:"dst,omitempty"` // address:port of the listener
	Local   bool        `json:"local,omitempty"`
	RDNS    string      `json:"rdns,omitempty"`
	FCrDNS  string      `json:"fcrdns"`
	Ending  string      `json:"ending"`
	Counts  Counts      `json:"counts"`
	Helo    []Helo      `json:"helo,omitempty"`
	TLS     []Line      `json:"tls,omitempty"`
	Auth    []Auth      `json:"auth,omitempty"`
	Tx      []Tx        `json:"transactions,omitempty"`
	Command []Line      `json:"commands,omitempty"` // unknown or failed ones, and refused input
	Finding []Finding   `json:"findings,omitempty"`
	Verdict []Decision  `json:"verdicts,omitempty"`
	Filter  []Decision  `json:"filters,omitempty"` // what filters, ours and others, have decided
	Tags    []Tag       `json:"tags,omitempty"`
	Bans    []Ban       `json:"bans,omitempty"`
	Omitted uint32      `json:"omitted,omitempty"`  // steps that were counted but not kept
	Sum     uint32      `json:"sessions,omitempty"` // this is the sum of so many sessions of one source
	Damage  string      `json:"damage,omitempty"`   // why the steps end early, if the record is damaged
	steps   []stepOfAll // all of them in order, for show
}

// Tag is a word that a rule has noted.
type Tag struct {
	At    Seconds `json:"at"`
	Tag   string  `json:"tag"`
	Phase string  `json:"phase"`
}

// A Ban is what a rule did, or would have done, to keep the host away.
type Ban struct {
	At         Seconds `json:"at"`
	Rule       string  `json:"rule"`
	Prefix     string  `json:"prefix"`
	Until      string  `json:"until,omitempty"`
	Spared     string  `json:"spared,omitempty"` // why the host was not banned
	CarriedOut bool    `json:"carried_out,omitempty"`
}

// stepOfAll is a step with its texts made printable.
type stepOfAll struct {
	kind                       store.Kind
	at                         Seconds
	text, arg, reply           string
	org, by, match, confidence string
	result                     string
	code                       uint32
	size                       uint64
	msgid                      string
	times                      uint32
}

// Counts are the numbers of a session.
type Counts struct {
	Commands     uint32 `json:"commands"`
	Unknown      uint32 `json:"unknown"`
	Failed       uint32 `json:"failed"`
	Mails        uint32 `json:"mails"`
	RcptOK       uint32 `json:"rcpt_ok"`
	RcptPermfail uint32 `json:"rcpt_permfail"`
	RcptTempfail uint32 `json:"rcpt_tempfail"`
	AuthPass     uint32 `json:"auth_pass"`
	AuthFail     uint32 `json:"auth_fail"`
	AuthRefused  uint32 `json:"auth_refused"`
}

// A Helo is a greeting of the client.
type Helo struct {
	At   Seconds `json:"at"`
	Verb string  `json:"verb,omitempty"`
	Name string  `json:"name"`
	Answer
}

// An Answer is what the server said to a command.
type Answer struct {
	Result string `json:"result,omitempty"`
	Code   uint32 `json:"code,omitempty"`
	Reply  string `json:"reply,omitempty"` // kept for first examples only
}

// A Line is something a client sent, or what is known of its connection.
type Line struct {
	At   Seconds `json:"at"`
	Line string  `json:"line"` // empty for input that was refused before it was a command
	Answer
}

// An Auth is an attempt to log in that came to a result.
type Auth struct {
	At     Seconds `json:"at"`
	User   string  `json:"user"`
	Result string  `json:"result"`
}

// A Tx is a transaction, or an attempt at one.
type Tx struct {
	At     Seconds `json:"at"`
	MsgID  string  `json:"msgid,omitempty"` // smtpd's message id
	Sender *string `json:"sender"`          // null if there was no MAIL FROM; empty for the null sender
	Answer
	Recipients []Recipient `json:"recipients,omitempty"`
	Data       *Answer     `json:"data,omitempty"`
	End        string      `json:"end,omitempty"` // accepted or rolled-back
	Size       uint64      `json:"size,omitempty"`
}

// A Recipient is a RCPT TO and its result.
type Recipient struct {
	At      Seconds `json:"at"`
	Address string  `json:"address"`
	Answer
}

// A Finding is evidence, with the line that proves it.
type Finding struct {
	At           Seconds `json:"at"`
	Evidence     string  `json:"evidence"`
	Organisation string  `json:"organisation,omitempty"`
	By           string  `json:"by,omitempty"`
	Match        string  `json:"match,omitempty"` // the row of a list that matched
	Confidence   string  `json:"confidence,omitempty"`
	Proof        string  `json:"proof,omitempty"`
	Times        uint32  `json:"sessions,omitempty"` // in a sum: in how many of the sessions
}

// A Decision is what a rule or a filter decided.
type Decision struct {
	At         Seconds `json:"at"`
	Rule       string  `json:"rule,omitempty"`
	Phase      string  `json:"phase,omitempty"`
	Decision   string  `json:"decision"`
	Text       string  `json:"text,omitempty"`
	CarriedOut bool    `json:"carried_out,omitempty"` // of a rule: not only observed
	BannedIn   string  `json:"banned_in,omitempty"`   // the session that the host was banned in, if it came while it was
	Times      uint32  `json:"sessions,omitempty"`    // in a sum: in how many of the sessions
}

// Seconds is a time since the start of the session.
type Seconds time.Duration

// MarshalJSON writes seconds with six decimals.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%d.%06d", time.Duration(s)/time.Second, time.Duration(s)%time.Second/time.Microsecond), nil
}

// Time is a moment, in JSON in UTC with microseconds.
type Time struct{ time.Time }

const jsonTime = "2006-01-02T15:04:05.000000Z"

// MarshalJSON writes RFC 3339, always with six decimals, so that times sort as text.
func (t Time) MarshalJSON() ([]byte, error) {
	return t.UTC().AppendFormat(nil, `"`+jsonTime+`"`), nil
}

// NewView makes the View of a record. Nothing in it refers to the record.
func NewView(r *store.Record) *View {
	v := &View{
		Session: fmt.Sprintf("%016x", r.ID), Start: Time{r.Start}, End: Time{r.End},
		Local: r.Local, RDNS: Printable(r.RDNS), FCrDNS: r.FCrDNS.String(), Ending: r.Ending.String(),
		Counts: Counts(r.Counts), Omitted: r.Omitted, Sum: r.Sessions,
	}
	if r.Src.IsValid() {
		v.Src, v.SrcPort = r.Src.Addr().String(), r.Src.Port()
	}
	if r.Dst.IsValid() {
		v.Dst = r.Dst.String()
	}
	err := r.Steps(func(s *store.Step) bool {
		p := stepOfAll{
			kind: s.Kind, at: Seconds(s.At), text: Printable(s.Text), arg: Printable(s.Arg), reply: Printable(s.Reply),
			org: Printable(s.Org), by: Printable(s.By), match: Printable(s.Match), confidence: Printable(s.Confidence),
			result: s.Result.String(), code: s.Code, size: s.Size, times: s.Times,
		}
		if s.MsgID != 0 {
			p.msgid = fmt.Sprintf("%08x", s.MsgID)
		}
		v.steps = append(v.steps, p)
		return true
	})
	if err != nil {
		v.Damage = Printable([]byte(err.Error()))
	}
	for i := range v.steps {
		v.place(&v.steps[i])
	}
	return v
}

// place puts a step where it belongs.
func (v *View) place(s *stepOfAll) {
	answer := Answer{s.result, s.code, s.reply}
	switch s.kind {
	case store.KindHelo:
		v.Helo = append(v.Helo, Helo{s.at, s.arg, s.text, answer})
	case store.KindTLS:
		v.TLS = append(v.TLS, Line{At: s.at, Line: s.text})
	case store.KindAuth:
		v.Auth = append(v.Auth, Auth{s.at, s.text, s.result})
	case store.KindMail:
		v.Tx = append(v.Tx, Tx{At: s.at, MsgID: s.msgid, Sender: &s.text, Answer: answer})
	case store.KindRcpt:
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
	case store.KindVerdict:
		v.Verdict = append(v.Verdict, Decision{At: s.at, Rule: s.text, Phase: s.arg, Decision: s.reply, CarriedOut: s.result == store.ResultOK.String(), BannedIn: s.match, Times: s.times})
	case store.KindBan:
		v.Bans = append(v.Bans, Ban{At: s.at, Rule: s.text, Prefix: s.arg, Until: s.reply, Spared: s.match, CarriedOut: s.result == store.ResultOK.String()})
	case store.KindTag:
		v.Tags = append(v.Tags, Tag{s.at, s.text, s.arg})
	case store.KindFilter:
		v.Filter = append(v.Filter, Decision{At: s.at, Phase: s.arg, Decision: s.text, Text: s.reply})
	}
}

// tx is the transaction that a step belongs to: the last one that was begun and
// has not ended. A step without one gets its own.
func (v *View) tx(s *stepOfAll) *Tx {
	for i := len(v.Tx) - 1; i >= 0; i-- {
		t := &v.Tx[i]
		if t.End != "" {
			break
		}
		refused := t.Sender != nil && t.Result != "" && t.Result != store.ResultOK.String()
		if !refused {
			return t
		}
	}
	v.Tx = append(v.Tx, Tx{At: s.at, MsgID: s.msgid})
	return &v.Tx[len(v.Tx)-1]
}

// HasEvidence tells whether there is a finding with the given token.
func (v *View) HasEvidence(token string) bool {
	for i := range v.Finding {
		if v.Finding[i].Evidence == token {
			return true
		}
	}
	return false
}

// Lines writes sessions as JSON, one object a line.
func Lines(w io.Writer) func(*View) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // < and > are everywhere in SMTP
	return func(v *View) error { return e.Encode(v) }
}

// columns are the columns of CSV.
var columns = []struct {
	name  string
	value func(*View) string
}{
	{"session", func(v *View) string { return v.Session }},
	{"start", func(v *View) string { return v.Start.UTC().Format(jsonTime) }},
	{"end", func(v *View) string { return v.End.UTC().Format(jsonTime) }},
	{"src", func(v *View) string { return v.Src }},
	{"src_port", func(v *View) string { return number(uint32(v.SrcPort)) }},
	{"dst", func(v *View) string { return v.Dst }},
	{"local", func(v *View) string { return strconv.FormatBool(v.Local) }},
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
	{"mails", func(v *View) string { return number(v.Counts.Mails) }},
	{"rcpt_ok", func(v *View) string { return number(v.Counts.RcptOK) }},
	{"rcpt_permfail", func(v *View) string { return number(v.Counts.RcptPermfail) }},
	{"rcpt_tempfail", func(v *View) string { return number(v.Counts.RcptTempfail) }},
	{"commands", func(v *View) string { return number(v.Counts.Commands) }},
	{"unknown", func(v *View) string { return number(v.Counts.Unknown) }},
	{"failed", func(v *View) string { return number(v.Counts.Failed) }},
	{"evidence", func(v *View) string { return join(v.Finding, func(f *Finding) string { return f.Evidence }) }},
	{"organisations", func(v *View) string { return join(v.Finding, func(f *Finding) string { return f.Organisation }) }},
	{"ending", func(v *View) string { return v.Ending }},
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// join lists texts once each, in the order in which they come first.
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

// CSV writes sessions as comma-separated values (RFC 4180), one row each, after
// a row with the names of the columns. The second function ends it.
func CSV(w io.Writer) (row func(*View) error, end func() error) {
	c := csv.NewWriter(w)
	cells := make([]string, len(columns))
	for i := range columns {
		cells[i] = columns[i].name
	}
	headErr := c.Write(cells)
	row = func(v *View) error {
		for i := range columns {
			cells[i] = Cell(columns[i].value(v))
		}
		return cmp.Or(headErr, c.Write(cells))
	}
	return row, func() error { c.Flush(); return cmp.Or(headErr, c.Error()) }
}

// Cell keeps spreadsheet programs from taking a text for a formula. Some skip
// blanks, and take the signs of full width for the usual ones.
func Cell(s string) string {
	if first, _ := utf8.DecodeRuneInString(strings.TrimLeft(s, " ")); strings.ContainsRune("=+-@\t\r\n＝＋－＠", first) {
		return "'" + s
	}
	return s
}
