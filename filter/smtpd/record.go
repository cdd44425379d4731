package smtpd

import (
	"bytes"

	"scanwatch/internal/smtp"
)

// VerbOf returns the verb of a redacted line in a record.
func VerbOf(line []byte) smtp.Verb {
	word, _ := cutWord(bytes.TrimLeft(line, " \t"))
	return lookupVerb(word)
}

// CauseOf returns why a mail server has rejected a command, given its reply. The server need not be
// smtpd.
func CauseOf(verb smtp.Verb, code uint32, text []byte) smtp.Cause {
	c := command{verb: verb, code: code, reply: text, unknown: code == 500 && bytes.HasPrefix(text, []byte("5.5.1 "))}
	return c.cause()
}

// InputCauseOf returns why smtpd or Postfix has rejected input that is not a command.
func InputCauseOf(text []byte) smtp.Cause {
	if bytes.Contains(text, []byte("Pipelining not supported")) || bytes.Contains(text, []byte("improper command pipelining")) {
		return smtp.CausePipelining
	}
	return smtp.CauseNone
}
