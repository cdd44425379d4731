package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"scanwatch/filter/memory"
)

// A Fact describes mail sent before the filter was installed: a host delivered messages on a day,
// users sent mail to a domain, or the server accepted mail for a mailbox.
type Fact struct {
	At       int64      // microseconds since 1970
	Addr     netip.Addr // the host; invalid if Domain or Mailbox is set
	Messages int        // messages that the host delivered from this sender
	Sender   string     // the sender's domain
	Domain   string     // domain to which users sent mail, in lower case
	Mailbox  string     // recipient that the server accepted
}

// Apply adds a fact to the state. Only the host's address becomes known, because the mail
// log does not prove the host's name.
func Apply(m *memory.Memory, f *Fact) {
	switch {
	case f.Mailbox != "":
		m.Recipients.Accepted([]byte(f.Mailbox), f.At)
		return
	case !f.Addr.IsValid():
		m.Peers.WroteTo(memory.RegisteredDomain([]byte(f.Domain)), f.At)
		return
	}
	sender := memory.RegisteredDomain([]byte(f.Sender))
	if sender == "" {
		sender = f.Sender
	}
	m.Peers.Delivered(&memory.Client{Addr: f.Addr}, memory.Delivery{Messages: f.Messages, Senders: []string{sender}}, f.At)
}

// maxFactAge is the maximum age of a fact.
const maxFactAge = 2 * 366 * 24 * time.Hour

// maxName is the maximum length of a domain name in bytes.
const maxName = 255

// MaxMailbox is the maximum length of a mailbox in bytes (RFC 5321 section 4.5.3.1).
const MaxMailbox = 64 + 1 + 255

// String encodes the fact as an argument of the learn command. The form is TIME;DOMAIN,
// TIME;;MAILBOX or TIME;ADDRESS;MESSAGES;SENDER. Each field is escaped as in a URL.
func (f *Fact) String() string {
	at := strconv.FormatInt(f.At, 10)
	switch {
	case f.Mailbox != "":
		return at + ";;" + url.QueryEscape(f.Mailbox)
	case !f.Addr.IsValid():
		return at + ";" + url.QueryEscape(f.Domain)
	}
	return at + ";" + url.QueryEscape(f.Addr.String()) + ";" + strconv.Itoa(f.Messages) + ";" + url.QueryEscape(f.Sender)
}

func parseFact(s string, now int64) (f Fact, err error) {
	words := strings.Split(s, ";")
	for i := range words {
		if words[i], err = url.QueryUnescape(words[i]); err != nil {
			return f, errors.New("not URL-escaped")
		}
	}
	if f.At, err = strconv.ParseInt(words[0], 10, 64); err != nil {
		return f, fmt.Errorf("parse time: %w", err)
	}
	if f.At <= now-maxFactAge.Microseconds() || f.At > now+(24*time.Hour).Microseconds() {
		return f, errors.New("time in the future or more than two years old")
	}
	switch len(words) {
	case 2:
		f.Domain = words[1]
		if f.Domain == "" || len(f.Domain) > maxName {
			return f, errors.New("no domain")
		}
	case 3:
		if f.Mailbox = words[2]; words[1] != "" || f.Mailbox == "" || len(f.Mailbox) > MaxMailbox {
			return f, errors.New("no mailbox")
		}
	case 4:
		if f.Addr, err = netip.ParseAddr(words[1]); err != nil || f.Addr.Zone() != "" {
			return f, errors.New("no address")
		}
		f.Addr = f.Addr.Unmap()
		if f.Messages, err = strconv.Atoi(words[2]); err != nil || f.Messages < 1 || f.Messages > 1<<16 {
			return f, errors.New("number of messages must be from 1 to 65536")
		}
		if f.Sender = words[3]; len(f.Sender) > maxName {
			return f, fmt.Errorf("sender longer than %d bytes", maxName)
		}
	default:
		return f, errors.New("must have 2 to 4 parts separated by semicolons")
	}
	return f, nil
}

// learnCommand returns the command that adds facts to the state. If any fact is invalid,
// no facts are added.
func learnCommand(m *memory.Memory, now func() int64) Command {
	return Command{"learn", 1, func(_ context.Context, a *Answer, args []string) error {
		var facts []Fact
		for s := range strings.SplitSeq(args[0], ",") {
			// Use the later of the two clocks, because the event clock advances only
			// when there are sessions.
			f, err := parseFact(s, max(now(), time.Now().UnixMicro()))
			if err != nil {
				return fmt.Errorf("parse %.80q: %w", s, err)
			}
			facts = append(facts, f)
		}
		for i := range facts {
			Apply(m, &facts[i])
		}
		return a.JSON(learned{len(facts)})
	}}
}

type learned struct {
	Facts int `json:"facts"`
}

// Learn adds facts to the filter's state.
func (c *Client) Learn(facts []Fact) error {
	var b strings.Builder
	send := func() error {
		if b.Len() == 0 {
			return nil
		}
		args := b.String()
		b.Reset()
		return c.ask(nil, "learn", args)
	}
	for i := range facts {
		one := facts[i].String()
		if b.Len()+len(one)+len("learn ,\n") > maxLine {
			if err := send(); err != nil {
				return err
			}
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(one)
	}
	return send()
}
