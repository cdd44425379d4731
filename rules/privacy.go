package rules

import (
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// A Retention is the time for which data of a certain kind is kept.
type Retention struct {
	What string
	For  time.Duration
}

// publication returns descriptions of the data that is sent to others.
func publication(p *Policy) (list []string) {
	if slices.ContainsFunc(p.Zones, func(z *Zone) bool { return z.Bans }) {
		list = append(list, "Other mail servers can find out through DNS whether a host is banned here, and why.")
	}
	if p.Fleet != nil {
		list = append(list, "Other mail servers of this site receive the addresses of banned hosts with the reasons for their bans, the addresses of hosts that have sent mail, and counts. They receive the names of mailboxes, users and domains only as keyed hashes.")
	}
	for _, c := range p.Companions {
		if c.Role != RoleForward {
			continue
		}
		if s := c.publication(); !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// publication returns a description of the data that the destination of a forward companion
// receives.
func (c *Companion) publication() string {
	if c.Target == ForwardAbuse {
		return "The addresses of hosts that attack this server are reported to AbuseIPDB, with the kind and time of the attack."
	}
	receiver, data := "Another program of this site", "the addresses, names and greetings of suspicious hosts, and the decisions about them."
	if slices.Contains(plainBodies, c.Forward.Body) {
		data = "the addresses of suspicious hosts, and the decisions about them."
	}
	switch u, err := url.Parse(c.Argument); {
	case c.Target == ForwardURL && filepath.IsAbs(c.Argument):
		receiver = "Another server" // the URL is in a file
	case err == nil && u.Hostname() != "":
		receiver = "The server " + u.Hostname()
	}
	return receiver + " receives " + data
}

// plainBodies lists the formats in ForwardBodies that contain no text from clients.
var plainBodies = []string{"chat", "text"}

// DescribePrivacy writes a text for users. DescribePrivacy lists the stored data and how long each
// kind is kept. The argument kept lists how long the data in the state is kept.
func (p *Policy) DescribePrivacy(w io.Writer, kept []Retention) error {
	d := &describer{Policy: p}
	d.title("Data stored about connections to this mail server")
	d.para("A program on this mail server records connections to find scanners and attacks, and to answer questions about rejected mail. For each connection from another host or device it stores:")
	for _, item := range []string{
		"the time, and the address and name of the host",
		"the commands and replies: the greeting, senders, recipients and user names",
		"the sizes of messages, and the decisions made by the program and its rules",
	} {
		d.item(item)
	}
	d.para("It does not store the subject or content of messages, or passwords. A user name that looks like a password is stored as a hash.")
	if p.Privacy == PrivacyHashed {
		d.para("The part of a mail address before the @ is stored as a keyed hash, except for role accounts such as postmaster.")
	} else {
		d.para("Mail addresses are stored unchanged.")
	}
	if len(p.Lookups) > 0 {
		var zones []string
		for _, l := range p.Lookups {
			zones = append(zones, strings.TrimPrefix(l.Zone, KeyMark+".")) // the key is not part of the name that users know
		}
		d.para("The program asks these DNS lists about the addresses of hosts that it does not know, and stores the answers: " + strings.Join(zones, ", ") + ".")
	}
	d.title("Retention")
	d.item("connections: " + text.DurationWords(p.Keep) + ", or less if the disk space for them is used up")
	for _, k := range kept {
		d.item(k.What + ": " + text.DurationWords(k.For))
	}
	d.para("The mail server's log is kept separately.")
	if others := publication(p); len(others) > 0 {
		d.title("Publication")
		for _, text := range others {
			d.para(text)
		}
	}
	d.title("Questions")
	contact := "the postmaster of this site"
	if p.Contact != "" {
		contact = p.Contact
	}
	d.para("Ask " + contact + " what is stored about you, or to remove it. An active ban remains stored until it ends.")
	_, err := io.WriteString(w, strings.TrimPrefix(d.out.String(), "\n"))
	return err
}
