package serverlog

import (
	"bytes"
	"time"

	"scanwatch/filter/maillog"
	"scanwatch/internal/smtp"
)

// A domino parses the console log of HCL Domino. The log contains no ports, so a session is
// identified by the client's address.
type domino struct {
	*table
	zone *time.Location
	form int // index of the format of the latest time
}

func newDomino(t *table) parser { return &domino{table: t, zone: t.zone} }

// dominoTimes lists the formats of times. The format depends on the settings of the system. If the
// date contains slashes, the month comes first. If the date contains hyphens or dots, the day comes
// first.
var dominoTimes = []string{"01/02/2006 03:04:05 PM", "01/02/2006 15:04:05", "2006-01-02 15:04:05", "02-01-2006 15:04:05", "02.01.2006 15:04:05", "2006/01/02 15:04:05"}

func (d *domino) line(l *maillog.Line) verdict {
	s := l.Raw
	if len(s) > 0 && s[0] == '[' { // skip the ids of the process and thread
		if i := bytes.IndexByte(s, ']'); i > 0 {
			s = bytes.TrimLeft(s[i+1:], " ")
		}
	}
	stamp, text, ok := bytes.Cut(s, []byte("  "))
	text, ok2 := bytes.CutPrefix(bytes.TrimLeft(text, " "), []byte("SMTP Server"))
	if !ok || !ok2 {
		return foreign
	}
	at, ok := d.time(string(stamp))
	if !ok {
		return unknown
	}
	at = d.tick(at)
	if rest, ok := bytes.CutPrefix(text, []byte(" [")); ok { // skip the id of the process
		_, text, _ = bytes.Cut(rest, []byte("]"))
	}
	text = bytes.TrimLeft(text, ": ")
	for _, f := range dominoForms {
		if rest, ok := bytes.CutPrefix(text, []byte(f.start)); ok {
			f.read(d, at, rest)
			return used
		}
	}
	addr, rest, _ := bytes.Cut(text, []byte(" "))
	switch {
	case bytes.HasPrefix(rest, []byte("connected")):
		d.session(at, addr)
	case bytes.HasPrefix(rest, []byte("disconnected. ")):
		if s := d.session(at, addr); s != nil {
			d.end(s, at, smtp.EndingPartial)
		}
	}
	return used
}

func (d *domino) time(s string) (int64, bool) {
	for i := range dominoTimes {
		form := (d.form + i) % len(dominoTimes)
		if t, err := time.ParseInLocation(dominoTimes[form], s, d.zone); err == nil {
			d.form = form
			return t.UnixMicro(), true
		}
	}
	return 0, false
}

// dominoForms lists the forms of lines that contain more than an address. Each form must match at
// the start of a line, because other lines may contain text from messages.
var dominoForms = []struct {
	start string
	read  func(d *domino, at int64, rest []byte)
}{
	{"Authentication failed for user ", (*domino).loginFailed},
	{"Connection from [", (*domino).rejected},
}

func (d *domino) session(at int64, addr []byte) *session {
	src := address(bytes.TrimSpace(addr), nil)
	if !src.IsValid() {
		return nil
	}
	key := src.Addr().AppendTo(nil)
	s := d.get(key, at)
	if s == nil {
		s = d.open(key, at, nil, src)
		s.partial = true // Domino does not log most commands
	}
	return s
}

// loginFailed handles "USER ; connecting host ADDRESS".
func (d *domino) loginFailed(at int64, after []byte) {
	i := bytes.LastIndex(after, []byte(" ; connecting host "))
	if i < 0 {
		return
	}
	if s := d.session(at, after[i+len(" ; connecting host "):]); s != nil {
		s.login(at, after[:i], smtp.ResultFail)
	}
}

// rejected handles "ADDRESS] rejected for policy reasons. TEXT".
func (d *domino) rejected(at int64, after []byte) {
	addr, text, ok := bytes.Cut(after, []byte("] rejected "))
	if !ok {
		return
	}
	if s := d.session(at, addr); s != nil {
		s.policy(at, smtp.PhaseConnect, codeAnd(554, text))
	}
}
