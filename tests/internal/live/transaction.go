//go:build linux

package live

import (
	"errors"
	"fmt"

	"scanwatch/tests/internal/smtpd"
)

// Transaction sends recipients in one transaction. ok is the number of accepted recipients, and
// refused is the number of rejected ones. The error is the reply that ended the session.
func Transaction(s *smtpd.Server, from, sender string, to []string, data bool) (ok, refused int, err error) {
	c, err := s.Dial(from, smtpd.PortMX)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	if r, err := c.ReadReply(); err != nil || r.Code != 220 {
		return 0, 0, fmt.Errorf("%v, %w", r, err)
	}
	for _, line := range []string{"EHLO host.example.net", "MAIL FROM:<" + sender + ">"} {
		if r, err := c.Cmd(line); err != nil || r.Code >= 400 {
			return 0, 0, fmt.Errorf("%v, %w", r, err)
		}
	}
	for _, rcpt := range to {
		r, err := c.Cmd("RCPT TO:<" + rcpt + "@example.org>")
		switch {
		case err != nil:
			return ok, refused, err
		case r.Code == 421:
			return ok, refused, errors.New(r.Text)
		case r.Code >= 400:
			refused++
		default:
			ok++
		}
	}
	if data {
		for _, line := range []string{"DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT"} {
			if r, err := c.Cmd(line); err != nil || r.Code >= 400 {
				return ok, refused, fmt.Errorf("%v, %w", r, err)
			}
		}
	}
	return ok, refused, nil
}

// Expected maps scenarios to their findings, which do not depend on the version.
var Expected = map[string]struct {
	Evidence []string // some of the scenario's findings
	Org      string
	Ending   string
}{
	"good-mail":         {nil, "", "quit"},
	"good-mail-ipv6":    {nil, "", "quit"},
	"null-sender":       {nil, "", "quit"},
	"ylmf-pc":           {[]string{"botnet-helo", "auth-unsupported"}, "PushDo / Cutwail", ""},
	"harvest":           {[]string{"unknown-recipient", "harvest"}, "", "quit"},
	"relay-probe":       {[]string{"relay-probe"}, "", ""},
	"ssh":               {[]string{"talks-ssh"}, "", ""},
	"http-lines":        {[]string{"talks-http", "scanner"}, "Palo Alto", ""},
	"http-one-write":    {[]string{"pipelining"}, "", "rejected"},
	"tls-hello":         {[]string{"no-mail"}, "", "dropped"},
	"tls-hello-line":    {[]string{"talks-tls"}, "", ""},
	"pipelined":         {[]string{"pipelining"}, "", "rejected"},
	"own-address":       {[]string{"helo-own-address"}, "", ""},
	"localhost-helo":    {[]string{"helo-localhost"}, "", ""},
	"drop-after-banner": {[]string{"no-mail"}, "", "dropped"},
	"drop":              {[]string{"no-mail"}, "", "dropped"},
	"shadowserver":      {[]string{"scanner"}, "Shadowserver", ""},
	"shodan":            {[]string{"scanner"}, "Shodan", ""},
	"ec2":               {[]string{"cloud"}, "Amazon", ""},
}
