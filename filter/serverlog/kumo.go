package serverlog

import (
	"encoding/json"
	"strconv"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
)

// A kumo parses the log of KumoMTA, which contains one JSON object per line. Records with the same
// session_id belong to the same session.
type kumo struct {
	*table
	record kumoRecord // reused
}

func newKumo(t *table) parser { return &kumo{table: t} }

// A kumoRecord is a record of type Reception or Rejection. A kumoRecord contains only the fields
// that are needed.
type kumoRecord struct {
	kind, sender, session string
	recipients            []string
	size                  uint64
	at                    []byte // value of event_time or timestamp
	code                  uint32
	unknown               bool // the enhanced status code is 5.1.1
	content, command      string
	helo, addr            string
	user                  string
}

// members maps the names of members of a record to the functions that read their values.
var members = map[string]func(r *kumoRecord, value []byte){
	"type":       func(r *kumoRecord, v []byte) { r.kind = str(v) },
	"sender":     func(r *kumoRecord, v []byte) { r.sender = str(v) },
	"session_id": func(r *kumoRecord, v []byte) { r.session = str(v) },
	"size":       func(r *kumoRecord, v []byte) { r.size = number(v) },
	"event_time": func(r *kumoRecord, v []byte) { r.at = v },
	"timestamp": func(r *kumoRecord, v []byte) {
		if r.at == nil {
			r.at = v
		}
	},
	"recipient": (*kumoRecord).recipient,
	"response": func(r *kumoRecord, v []byte) {
		object(v, func(key, v []byte) {
			switch string(key) {
			case "code":
				r.code = uint32(min(number(v), 999))
			case "enhanced_code":
				r.unknown = isUnknownUser(v)
			case "content":
				r.content = str(v)
			case "command":
				r.command = str(v)
			}
		})
	},
	"peer_address": func(r *kumoRecord, v []byte) {
		object(v, func(key, v []byte) {
			switch string(key) {
			case "name":
				r.helo = str(v)
			case "addr":
				r.addr = str(v)
			}
		})
	},
	"meta": func(r *kumoRecord, v []byte) {
		object(v, func(key, v []byte) {
			if string(key) == "authn_id" {
				r.user = str(v)
			}
		})
	},
}

// recipient reads one recipient or a list of recipients.
func (r *kumoRecord) recipient(v []byte) {
	if len(v) > 0 && v[0] == '[' {
		_ = json.Unmarshal(v, &r.recipients)
	} else if one := str(v); one != "" {
		r.recipients = append(r.recipients, one)
	}
}

// isUnknownUser reports whether an enhanced status code is 5.1.1 (RFC 3463).
func isUnknownUser(v []byte) bool {
	var class, subject, detail uint64
	object(v, func(key, v []byte) {
		switch string(key) {
		case "class":
			class = number(v)
		case "subject":
			subject = number(v)
		case "detail":
			detail = number(v)
		}
	})
	return class == 5 && subject == 1 && detail == 1
}

// maxSession is the maximum length of a session_id in bytes.
const maxSession = 64

func (k *kumo) line(l *maillog.Line) verdict {
	r := &k.record
	*r = kumoRecord{recipients: r.recipients[:0]}
	if len(l.Raw) == 0 {
		return used
	}
	complete := object(l.Raw, func(key, value []byte) {
		if read := members[string(key)]; read != nil {
			read(r, value)
		}
	})
	if !complete {
		return unknown
	}
	if r.kind != "Reception" && r.kind != "Rejection" {
		return foreign // the record is about a delivery or a bounce
	}
	at, ok := kumoTime(r.at)
	addr, port := endpoint([]byte(r.addr))
	src := address(addr, port)
	if !ok || !src.IsValid() || len(r.session) > maxSession {
		return unknown
	}
	at = k.tick(at)
	key := r.session
	if key == "" { // KumoMTA before 2025.01.23 writes no session_id
		key = "client " + src.Addr().String()
	}
	s := k.get([]byte(key), at)
	if s == nil {
		s = k.open([]byte(key), at, nil, src)
	}
	s.greet(at, []byte(r.helo), smtp.VerbEhlo)
	if r.user != "" && s.user == "" {
		s.user = r.user
		s.login(at, []byte(r.user), smtp.ResultPass)
	}
	if r.kind == "Reception" {
		s.mail(at, []byte(r.sender), accepted)
		for _, one := range r.recipients[:min(len(r.recipients), maxRecipients)] {
			s.rcpt(at, []byte(one), 0, nil, smtp.CauseNone, accepted)
		}
		s.message(at, r.size, accepted, true)
		return used
	}
	s.kumoRejection(at, r)
	return used
}

// kumoTime parses a time, which is either in seconds since 1970 or in RFC 3339 format.
func kumoTime(raw []byte) (at int64, ok bool) {
	if n := number(raw); n > 0 && n < 1<<40 {
		return int64(n) * second, true
	}
	if seconds, err := strconv.ParseFloat(string(raw), 64); err == nil && seconds > 0 && seconds < 1<<40 {
		return int64(seconds * float64(second)), true
	}
	t, err := time.Parse(time.RFC3339, str(raw))
	return t.UnixMicro(), err == nil
}

func (s *session) kumoRejection(at int64, r *kumoRecord) {
	var red smtpd.Redactor
	line := []byte(r.command)
	shown, verb := red.Line(line)
	if verb == smtp.VerbUnknown && len(line) > 0 {
		shown = smtpd.RedactUnknown(line)
	}
	code, text := r.code, []byte(r.content)
	if masked(shown, line, verb) {
		text = status(text)
	}
	if r.unknown {
		text = append([]byte("5.1.1 "), text...)
	}
	switch verb {
	case smtp.VerbRcpt:
		s.mailAgain(at, []byte(r.sender))
		s.rcptRefused(at, argument(line, verb), code, text, rejected)
	case smtp.VerbAuth:
		s.talk = new(talk)
		s.talk.red = red
		authOutcome(s, at, code, nil)
	case smtp.VerbUnknown:
		if len(line) == 0 { // a policy rejected the client without a command
			s.policy(at, smtp.PhaseConnect, codeAnd(code, text))
			return
		}
		s.command(at, verb, shown, code, text, smtp.CauseUnknown)
	case smtp.VerbMail:
		s.policy(at, smtp.PhaseMailFrom, codeAnd(code, text))
		s.mailFailed(at, []byte(r.sender), code, text, smtp.CauseFilter)
	case smtp.VerbData, smtp.VerbDot:
		s.policy(at, smtp.PhaseCommit, codeAnd(code, text))
	default:
		s.command(at, verb, shown, code, text, smtp.CauseNone)
	}
}
