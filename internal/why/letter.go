package why

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"scanwatch/internal/prefix"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// letterColumns is the maximum line width in the letter. RFC 3676 section 4.2
// allows 78 columns.
const letterColumns = 72

// advice explains to the client's postmaster how to avoid the evidence. The first
// matching row applies. A row that ends with a hyphen matches all tokens that start
// with it.
var advice = []struct{ evidence, text string }{
	{"helo-", "Please configure your server to greet with its own full host name, such as mail.example.org, and publish that name in DNS."},
	{"botnet-helo", "Please check the host for malware, or configure your server to greet with its own full host name."},
	{"rdns-missing", "Please publish a reverse DNS name (PTR) for the address, and an address record for that name."},
	{"fcrdns-fail", "Please publish an address record for the address's reverse DNS name, so that the two agree."},
	{"unknown-recipient", "Please remove nonexistent addresses from your list."},
	{"harvest", "Please remove nonexistent addresses from your list."},
	{"recipient-flood", "Please remove nonexistent addresses from your list."},
	{"probed-recipient", "Please check that the recipient's address is correct."},
	{"backscatter", "Your server bounces messages with forged senders. Please reject such messages in the SMTP session."},
	{"auth-", "A device or program is using a wrong password. Please correct the password, or remove the account from the device."},
	{"account-abuse", "The account's password is probably known to others. Please change it."},
	{"relay-probe", "The recipients are not in our domains, and this server relays mail only for its own users."},
	{"listed", "A DNS block list contains the address. Please fix the cause, and ask the list's operator to remove the address."},
	{"cloud", "Please send mail through your provider's relay, or publish your own reverse DNS name for the address."},
	{"scanner", "If this is a research scan, please exclude our networks."},
}

// otherAdvice applies if no row matches.
const otherAdvice = "Please check the mail program or server on this host for faults or malware."

// Letter writes a reply to a sender who complains about the newest rejection in the answer. The
// reply is in plain English. The reply contains nothing that the sender does not already know, and
// does not mention other clients, users or rules.
func (a *Answer) Letter(w io.Writer, zone *time.Location) error {
	s, r := a.decision()
	if s == nil {
		return errors.New("no rule rejected these sessions, so there is nothing to explain")
	}
	if s.Erased {
		return fmt.Errorf("write letter about session %s: its address has been erased by scanwatch forget", s.Session)
	}
	if s.Src == "" {
		return fmt.Errorf("session %s is in an aggregate, and its client is not recorded", s.Session)
	}
	var b strings.Builder
	para := func(format string, args ...any) {
		b.WriteString(text.Fold(fmt.Sprintf(format, args...), letterColumns, 0) + "\n\n")
	}
	at := s.Start.In(zone)
	fmt.Fprintf(&b, "Subject: Your connection to our mail server on %s\n\n", at.Format(time.DateOnly))
	para("Hello,")
	name := s.Src
	if s.RDNS != "" {
		name += " (" + s.RDNS + ")"
	}
	greeting := ""
	if len(s.Helo) > 0 && s.Helo[0] != "" {
		greeting = fmt.Sprintf(", which greeted as %q,", s.Helo[0])
	}
	para("On %s, the host %s%s connected to our mail server.", at.Format("2006-01-02 at 15:04 -0700"), name, greeting)
	switch {
	case r.Exempt != "":
		para("It was not rejected, because it is exempt from the rule. If a message is missing, there is another reason.")
	case !r.Enforced:
		para("It was not rejected: the rule is only on trial. If a message is missing, there is another reason.")
	case r.Reply != "" && s.FrontEnd == "milter" && r.Phases == smtp.PhaseConnect.String(): // the server replaces the text
		para("The server answered with the code %.3s.", r.Reply)
	case r.Reply != "" && s.FrontEnd == "milter" && r.Decision == smtp.Disconnect.String(): // it may have rejected the recipient itself
		para("The server answered, or would have answered the next command:")
		b.WriteString("    " + r.Reply + "\n\n")
	case r.Reply != "":
		para("The server answered:")
		b.WriteString("    " + r.Reply + "\n\n")
	default:
		para("The server rejected it.")
	}
	origin, of := a.origin(s, r)
	para("%s", origin.reason(of))
	para("%s", a.banState(s, zone))
	reference := s.Session
	if r.BannedIn != "" && r.BannedIn != manual {
		reference = r.BannedIn // the SMTP reply contains this id
	}
	para("If you think that this is a mistake, please reply to this message. The reference is %s.", reference)
	_, err := io.WriteString(w, strings.TrimSuffix(b.String(), "\n"))
	return err
}

// reason describes the evidence for a decision and the sender's remedy.
func (s *Session) reason(r *Rule) string {
	if r.BannedIn == manual {
		return "The postmaster has banned the address."
	}
	if r.BannedOn != "" {
		return "Another mail server of this site has banned the address. " + otherAdvice
	}
	reason := "The reason: this host "
	if r.Now == assumed {
		reason = "The rule at that time was not recorded. According to the current rule, the reason is: this host "
	}
	for i := range s.Evidence {
		e := &s.Evidence[i]
		token := rules.TokenByName(e.Evidence)
		switch {
		case token == nil || r.Text != "" && !strings.Contains(r.Text, e.Evidence) || s.otherList(r, e):
			continue
		case r.Text == "" && e.Confidence != "high":
			continue
		case r.Text == "":
			reason = "The rule was not recorded. The session's record shows that this host "
		}
		for _, row := range advice {
			if row.evidence == e.Evidence || strings.HasSuffix(row.evidence, "-") && strings.HasPrefix(e.Evidence, row.evidence) {
				if _, zone := e.DNSList(); zone != "" {
					row.text = strings.Replace(row.text, "A DNS block list contains", "The list "+zone+" contains", 1)
				}
				return reason + token.Means + ". " + row.text
			}
		}
		return reason + token.Means + ". " + otherAdvice
	}
	return "The reason is a rule of this site about such clients. " + otherAdvice
}

// banState reports until when the host is banned.
func (a *Answer) banState(s *Session, zone *time.Location) string {
	if a.observes() {
		return "This server is not rejecting anything at present, so you can try again."
	}
	if h := a.host(s); h != nil {
		for _, b := range (&Answer{Hosts: []*Host{h}}).banned() {
			return fmt.Sprintf("The address %s is banned until %s.", prefix.String(b.Prefix), b.Until.In(zone).Format("2006-01-02 15:04 -0700"))
		}
	}
	return "The address is not currently banned, so you can try again."
}
