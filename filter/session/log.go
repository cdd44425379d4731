package session

import (
	"strconv"

	"scanwatch/rules"
)

// logFinding logs one line. Its first words and the order of its keys are
// stable: other programs read them. The address stands on every line.
func (t *Table) logFinding(s *Session, token string, f *finding) {
	b := append(t.line[:0], "finding"...)
	b = appendPair(b, "evidence", []byte(token))
	b = appendPair(b, "src", s.source())
	b = appendPair(b, "confidence", []byte(f.confidence))
	if f.org != "" {
		b = appendPair(b, "org", []byte(f.org))
	}
	b = appendPair(b, "by", []byte(f.by))
	if f.match != "" {
		b = appendPair(b, "match", []byte(f.match))
	}
	if len(f.proof) > 0 {
		b = appendPair(b, "proof", f.proof)
	}
	if len(s.RDNS) > 0 {
		b = appendPair(b, "rdns", s.RDNS)
	}
	b = appendPair(b, "fcrdns", []byte(s.FCrDNS.String()))
	b = appendPair(b, "session", appendHex(nil, s.ID))
	t.line = b
	t.options.Log(b)
}

// logVerdict logs what a rule decided, or would have decided.
func (t *Table) logVerdict(s *Session, phase rules.Phase, o *rules.Outcome, done bool, v *rules.Verdict) {
	b := append(t.line[:0], "verdict"...)
	if done {
		b = appendPair(b, "decision", []byte(o.Decision.String()))
	} else {
		b = appendPair(b, "would", []byte(o.Decision.String()))
	}
	b = appendPair(b, "src", s.source())
	b = appendPair(b, "rule", []byte(o.Rule.Name))
	b = appendPair(b, "phase", []byte(phase.String()))
	if e := s.Evidence | s.Weak; e != 0 {
		b = appendPair(b, "evidence", []byte(e.String()))
	}
	if v.Total != 0 {
		b = appendPair(b, "score", strconv.AppendInt(nil, int64(v.Total), 10))
	}
	if len(s.Helo) > 0 {
		b = appendPair(b, "helo", s.Helo)
	}
	if len(s.RDNS) > 0 {
		b = appendPair(b, "rdns", s.RDNS)
	}
	b = appendPair(b, "session", appendHex(nil, s.ID))
	t.line = b
	t.options.Log(b)
}

// logTag logs a word that a rule has noted.
func (t *Table) logTag(s *Session, phase rules.Phase, name string) {
	b := append(t.line[:0], "tagged"...)
	b = appendPair(b, "tag", []byte(name))
	b = appendPair(b, "src", s.source())
	b = appendPair(b, "phase", []byte(phase.String()))
	b = appendPair(b, "session", appendHex(nil, s.ID))
	t.line = b
	t.options.Log(b)
}

// source is the address for log lines.
func (s *Session) source() []byte {
	if s.Local {
		return []byte("local")
	}
	return s.Src.Addr().AppendTo(nil)
}

// logUnlogged tells how many findings were not logged since the last line.
func (t *Table) logUnlogged() {
	if t.limit.dropped == 0 {
		return
	}
	t.line = appendPair(append(t.line[:0], "findings"...), "unlogged", strconv.AppendUint(nil, t.limit.dropped, 10))
	t.limit.dropped = 0
	t.options.Log(t.line)
}

// appendPair appends ` key=value`. A value of harmless characters stands as it
// is; any other is quoted as Go quotes, in ASCII, so that no client can begin a
// line, forge a key or send an escape sequence to a terminal.
func appendPair(dst []byte, key string, value []byte) []byte {
	dst = append(append(append(dst, ' '), key...), '=')
	value = cut(value, maxValue)
	if plain(value) {
		return append(dst, value...)
	}
	return strconv.AppendQuoteToASCII(dst, string(value))
}

// plain tells whether value needs no quotes: not empty, and only letters,
// digits and a few signs that mean nothing to shells, logs and terminals.
func plain(value []byte) bool {
	for _, c := range value {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == ':', c == '-', c == '_', c == '/', c == '@', c == '+', c == ',':
		default:
			return false
		}
	}
	return len(value) > 0
}

func appendHex(dst []byte, id uint64) []byte {
	const digits = "0123456789abcdef"
	for i := 60; i >= 0; i -= 4 {
		dst = append(dst, digits[id>>i&15])
	}
	return dst
}
