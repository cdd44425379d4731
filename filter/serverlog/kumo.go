package serverlog

import (
	"encoding/json"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// A kumo parses the records of KumoMTA, one JSON object a line. The records of a session have
// the same session_id.
type kumo struct {
	*table
	record kumoRecord // reused
}

func newKumo(t *table) parser { return &kumo{table: t} }

// A kumoRecord is a record of type Reception or Rejection. Fields that are not needed are
// omitted.
type kumoRecord struct {
	Type      string          `json:"type"`
	Sender    string          `json:"sender"`
	Recipient kumoRecipients  `json:"recipient"`
	Size      uint64          `json:"size"`
	Session   string          `json:"session_id"`
	Time      json.RawMessage `json:"event_time"`
	Timestamp json.RawMessage `json:"timestamp"`
	Node      string          `json:"nodeid"`
	Response  struct {
		Code     uint32 `json:"code"`
		Enhanced *struct {
			Class, Subject, Detail uint32
		} `json:"enhanced_code"`
		Content string `json:"content"`
		Command string `json:"command"`
	} `json:"response"`
	Peer struct {
		Name string `json:"name"` // the greeting
		Addr string `json:"addr"`
	} `json:"peer_address"`
	Meta struct {
		User string `json:"authn_id"`
	} `json:"meta"`
}

// kumoRecipients is a recipient or a list of recipients.
type kumoRecipients []string

func (r *kumoRecipients) UnmarshalJSON(b []byte) error {
	*r = (*r)[:0]
	if len(b) > 0 && b[0] == '[' {
		return json.Unmarshal(b, (*[]string)(r))
	}
	var one string
	err := json.Unmarshal(b, &one)
	if one != "" {
		*r = append(*r, one)
	}
	return err
}

// maxSession is the maximum length of a session's identifier, in bytes.
const maxSession = 64

func (k *kumo) line(l *maillog.Line) verdict {
	r := &k.record
	*r = kumoRecord{Recipient: r.Recipient[:0]}
	if len(l.Raw) == 0 {
		return used
	}
	if err := json.Unmarshal(l.Raw, r); err != nil {
		return unknown
	}
	if r.Type != "Reception" && r.Type != "Rejection" {
		return foreign // deliveries and bounces
	}
	at, ok := kumoTime(r.Time)
	if !ok {
		at, ok = kumoTime(r.Timestamp)
	}
	addr, port := endpoint([]byte(r.Peer.Addr))
	src := address(addr, port)
	if !ok || !src.IsValid() || len(r.Session) > maxSession {
		return unknown
	}
	k.tick(at)
	key := r.Session
	if key == "" { // before version 2025.01.23
		key = "client " + src.Addr().String()
	}
	s := k.get([]byte(key), at)
	if s == nil {
		s = k.open([]byte(key), at, nil, src)
	}
	s.greet(at, []byte(r.Peer.Name), smtp.VerbEhlo)
	if r.Meta.User != "" && s.user == "" {
		s.user = r.Meta.User
		s.login(at, []byte(r.Meta.User), smtp.ResultPass)
	}
	if r.Type == "Reception" {
		s.mail(at, []byte(r.Sender), accepted)
		for _, one := range r.Recipient {
			s.rcpt(at, []byte(one), 0, nil, smtp.CauseNone, accepted)
		}
		s.message(at, r.Size, accepted)
		return used
	}
	s.kumoRejection(at, r)
	return used
}

// kumoTime parses seconds since 1970 or a time as in RFC 3339.
func kumoTime(raw json.RawMessage) (at int64, ok bool) {
	var seconds float64
	if json.Unmarshal(raw, &seconds) == nil && seconds > 0 && seconds < 1<<40 {
		return int64(seconds * float64(second)), true
	}
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return 0, false
	}
	t, err := time.Parse(time.RFC3339, text)
	return t.UnixMicro(), err == nil
}

func (s *session) kumoRejection(at int64, r *kumoRecord) {
	var red smtpd.Redactor
	line := []byte(r.Response.Command)
	shown, verb := red.Line(line)
	code, text := r.Response.Code, []byte(r.Response.Content)
	if e := r.Response.Enhanced; e != nil && e.Class == 5 && e.Subject == 1 && e.Detail == 1 {
		text = append([]byte("5.1.1 "), text...)
	}
	switch verb {
	case smtp.VerbRcpt:
		if !s.open || string(s.sender) != r.Sender {
			s.mail(at, []byte(r.Sender), rejected)
		}
		s.rcptRefused(at, argument(line, verb), code, text, rejected)
	case smtp.VerbAuth:
		s.talk = new(talk)
		s.talk.red = red
		authOutcome(s, at, code, nil)
	case smtp.VerbUnknown:
		if len(line) == 0 { // rejected by a policy, without a command
			s.policy(at, smtp.PhaseConnect, codeAnd(code, text))
			return
		}
		s.command(at, verb, smtpd.RedactUnknown(shown), code, text, smtp.CauseUnknown)
	case smtp.VerbMail:
		s.policy(at, smtp.PhaseMailFrom, codeAnd(code, text))
		s.mailFailed(at, []byte(r.Sender), code, text, smtp.CauseFilter)
	case smtp.VerbData, smtp.VerbDot:
		s.policy(at, smtp.PhaseCommit, codeAnd(code, text))
	default:
		s.command(at, verb, shown, code, text, smtp.CauseNone)
	}
}
