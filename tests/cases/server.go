// Package cases tests how the presets treat legitimate and hostile clients. Each case is a small
// program that plays clients against the filter's pipeline on a simulated clock. The program
// contains assertions that must hold.
//
// The server's domain is example.org. Addresses for documentation (RFC 5737) represent public
// addresses.
package cases

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/smtp"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// A Case is a situation and the conditions that must be true in it.
type Case struct {
	Name    string
	Presets []string // by default, the presets standard and tight
	Conf    string   // lines after the preset
	Edit    func(policy string) string
	Lines   string       // the complete policy, which replaces the preset
	Own     []netip.Addr // further addresses of the server
	ASN     *lookup.Origins
	Play    func(s *Server)
}

// A Server is a case's mail server.
type Server struct {
	*simulate.Live
	Preset    string
	Mailboxes []string
	// Fails lists the assertions that failed.
	Fails []string

	c       *Case
	milter  bool   // the server uses the front end for milters
	text    string // text of the policy
	filter  *filter.Pipeline
	stopped func() // stops the filter
	memory  *memory.Memory
	records map[uint64]*record
	log     []string
	err     error
}

// A record holds the fields of a store.Record that cases need.
type record struct {
	findings []finding
	acts     []act
}

type finding struct{ token, confidence, org, match string }

// An act is a recipient, a decision, a tag or a ban in a record.
type act struct {
	kind         store.Kind
	text, exempt string
	enforced     bool
}

// begins is the time at which cases start.
var begins = time.Date(2026, 11, 2, 8, 0, 0, 0, time.UTC)

// mailboxes contains the mailboxes that exist in every case, in addition to postmaster and abuse.
var mailboxes = strings.Fields("info alice bob carol dave erin frank grace heidi ivan judy")

// New starts a case's server, which behaves like OpenSMTPD.
func New(c *Case, preset string) (*Server, error) { return start(c, preset, false) }

// NewMilter starts a case's server, which uses the front end for milters.
func NewMilter(c *Case, preset string) (*Server, error) { return start(c, preset, true) }

func start(c *Case, preset string, milter bool) (*Server, error) {
	s := &Server{Preset: preset, c: c, milter: milter, Mailboxes: slices.Concat([]string{"postmaster", "abuse"}, mailboxes), records: make(map[uint64]*record)}
	text := c.Lines
	if text == "" {
		preset, err := simulate.PresetText(preset)
		if err != nil {
			return nil, err
		}
		text = strings.Replace(preset, "\nmode observe", "\nmode enforce", 1)
		if c.Edit != nil {
			text = c.Edit(text)
		}
		text += "\n" + c.Conf + "\n"
	}
	s.text = text
	s.memory = memory.New()
	return s, s.begin(begins, 0)
}

// Over returns a server whose filter is a separate process. Assertions about records and bans are
// ignored, because they are not accessible here.
func Over(l *simulate.Live) *Server {
	s := &Server{Live: l, Mailboxes: slices.Concat([]string{"postmaster", "abuse"}, mailboxes)}
	l.Exists = func(local string) bool { return slices.Contains(s.Mailboxes, local) }
	return s
}

// begin starts a filter with the state in s.memory.
func (s *Server) begin(at time.Time, sessions int) error {
	policy, _, err := simulate.CompileAnyway(s.text)
	if err != nil {
		return err
	}
	o := filter.Options{
		Record: s.record, Log: func(line []byte) { s.log = append(s.log, string(line)) }, Lists: simulate.Lists, Memory: s.memory,
		OwnAddrs: append(s.c.Own, netip.MustParseAddr("192.0.2.25"), netip.MustParseAddr("2001:db8:ffff::25")),
	}
	if s.milter {
		m := simulate.NewMilter(o)
		m.Use(s.settings(policy))
		m.Fate = func() simulate.Fate { return s.Fate() }
		s.filter, s.stopped = m.Pipeline, func() { s.err = errors.Join(s.err, m.Stop()) }
		s.Live = simulate.NewLive(m, smtpd.Requests(smtp.AllPhases), at)
	} else {
		f := simulate.NewFilter(o)
		f.Use(s.settings(policy))
		s.filter, s.stopped = f.Pipeline, f.Stop
		s.Live = simulate.NewLive(f, smtpd.Requests(filter.Phases(policy)), at)
	}
	s.Number(sessions)
	s.Exists = func(local string) bool { return slices.Contains(s.Mailboxes, local) }
	return nil
}

func (s *Server) settings(policy *rules.Policy) *filter.Settings {
	return &filter.Settings{Policy: policy, ASN: s.c.ASN}
}

// Replace changes the policy, as a reload would. The new policy must have rules in the same phases
// as the old one.
func (s *Server) Replace(old, with string) {
	if !strings.Contains(s.text, old) {
		s.Fail("the policy has no text %q", old)
	}
	s.text = strings.ReplaceAll(s.text, old, with)
	policy, _, err := simulate.CompileAnyway(s.text)
	if err != nil {
		s.Fail("%v", err)
		return
	}
	s.Flush()
	s.filter.Use(s.settings(policy))
}

// Restart restarts the filter with its stored state.
func (s *Server) Restart() {
	at, n := s.Now(), s.Sessions()
	s.stop()
	s.memory.Rewrite()
	rows := s.memory.Changes(1 << 20)
	s.memory = memory.New()
	s.memory.Load(slices.Values(rows), at.UnixMicro())
	if err := s.begin(at.Add(time.Second), n); err != nil {
		s.err = err
	}
}

func (s *Server) stop() {
	if err := s.Live.Close(); err != nil && s.err == nil {
		s.err = err
	}
	s.stopped()
}

// Close ends the case. It returns errors from the filter, not failed assertions.
func (s *Server) Close() error {
	s.stop()
	return s.err
}

func (s *Server) record(at time.Time, id uint64, value []byte) {
	r, err := store.Decode(store.AppendKey(nil, at, id), bytes.Clone(value))
	if err != nil {
		s.err = err
		return
	}
	rec := s.records[r.ID]
	if rec == nil {
		rec = new(record)
		s.records[r.ID] = rec
	}
	err = r.Steps(func(st *store.Step) bool {
		switch st.Kind {
		case store.KindFinding:
			rec.findings = append(rec.findings, finding{string(st.Text), string(st.Confidence), string(st.Org), string(st.Match)})
		case store.KindRcpt, store.KindVerdict, store.KindTag, store.KindBan:
			rec.acts = append(rec.acts, act{st.Kind, string(st.Text), st.Exempt, st.Enforced})
		}
		return true
	})
	if err != nil {
		s.err = err
	}
}

// Wait advances the clock. A local monitor connects once a day, as on a real server.
func (s *Server) Wait(d time.Duration) {
	until := s.Now().Add(d)
	for until.Sub(s.Now()) > 24*time.Hour {
		s.WaitUntil(s.Now().Add(24 * time.Hour))
		c := s.Connect(named("192.0.2.200", "monitor.example.org"))
		c.Ehlo()
		c.Quit()
	}
	s.WaitUntil(until)
}

// Fail records that an assertion has failed.
func (s *Server) Fail(format string, args ...any) {
	s.Fails = append(s.Fails, fmt.Sprintf(format, args...))
}

// Check reports an assertion as failed if ok is false.
func (s *Server) Check(ok bool, format string, args ...any) {
	if !ok {
		s.Fail(format, args...)
	}
}

func who(c *simulate.Client) string { return fmt.Sprintf("%v (%s, %s)", c.Src, c.RDNS, c.Helo) }

// answers returns the filter's first two negative answers to c.
func answers(c *simulate.Client) string {
	var texts []string
	for _, r := range c.Refusals() {
		texts = append(texts, r.Phase.String()+": "+r.Text)
	}
	return strings.Join(texts[:min(2, len(texts))], "; ")
}

// Accepted asserts that the filter rejected nothing.
func (s *Server) Accepted(cs ...*simulate.Client) {
	for _, c := range cs {
		s.Check(len(c.Refusals()) == 0, "%s was rejected: %s", who(c), answers(c))
	}
}

// Rejected asserts that the filter rejected each of cs. If phase is not empty, the
// rejection must be in that phase.
func (s *Server) Rejected(phase string, cs ...*simulate.Client) {
	for _, c := range cs {
		ok := slices.ContainsFunc(c.Refusals(), func(r simulate.Refusal) bool { return phase == "" || r.Phase.String() == phase })
		s.Check(ok, "%s was not rejected %s: %s", who(c), phase, answers(c))
	}
}

// Temporary asserts that all negative answers to cs are temporary.
func (s *Server) Temporary(cs ...*simulate.Client) {
	for _, c := range cs {
		bad := slices.ContainsFunc(c.Refusals(), func(r simulate.Refusal) bool { return r.Text[0] == '5' })
		s.Check(!bad, "%s was rejected permanently: %s", who(c), answers(c))
	}
}

// Delivered asserts that at least one message was accepted.
func (s *Server) Delivered(cs ...*simulate.Client) {
	for _, c := range cs {
		s.Check(c.Mails() > 0, "no message of %s was accepted: %s", who(c), answers(c))
	}
}

// bans returns all bans imposed by rules, even if they have expired.
func (s *Server) bans() (list []memory.Ban) {
	s.Flush()
	s.memory.Bans.Each(func(b memory.Ban) {
		if !b.Manual && !b.Observe {
			list = append(list, b)
		}
	})
	return list
}

// NotBanned asserts that no rule banned the hosts of cs.
func (s *Server) NotBanned(cs ...*simulate.Client) {
	for _, b := range s.bans() {
		for _, c := range cs {
			if b.Prefix.Contains(c.Src) {
				s.Fail("%s is banned by %s", who(c), b.Rule)
				break
			}
		}
	}
}

// Banned asserts that a rule banned each host of cs.
func (s *Server) Banned(cs ...*simulate.Client) {
	list := s.bans()
	for _, c := range cs {
		ok := slices.ContainsFunc(list, func(b memory.Ban) bool { return b.Prefix.Contains(c.Src) })
		s.Check(ok, "%s is not banned", who(c))
	}
}

// blame contains the evidence of misbehaviour. All other evidence only describes unusual
// properties.
var blame = strings.Fields("scanner botnet-helo helo-own-name helo-own-address helo-forged harvest relay-probe auth-spray early-talker campaign flood talks-http talks-ssh talks-tls talks-binary")

// Fair asserts that legitimate clients received no negative answer and no ban. The clients' records
// must not contain high-confidence evidence of misbehaviour.
func (s *Server) Fair(cs ...*simulate.Client) {
	s.Accepted(cs...)
	s.NotBanned(cs...)
	s.NotBlamed(cs...)
}

// NotBlamed asserts that the records of cs contain no high-confidence evidence of misbehaviour.
func (s *Server) NotBlamed(cs ...*simulate.Client) {
	for _, c := range cs {
		for _, f := range s.findings(c) {
			s.Check(f.confidence != "high" || !slices.Contains(blame, f.token), "%s has the finding %s", who(c), f.token)
		}
	}
}

func (s *Server) findings(c *simulate.Client) []finding {
	s.Flush()
	if r := s.records[c.ID()]; r != nil {
		return r.findings
	}
	return nil
}

// Tokens returns the evidence in the records of cs.
func (s *Server) Tokens(cs ...*simulate.Client) (list []string) {
	for _, c := range cs {
		for _, f := range s.findings(c) {
			list = append(list, f.token)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Evidence asserts that c's record has the token. If confidence is not empty, the finding must have
// that confidence.
func (s *Server) Evidence(c *simulate.Client, token, confidence string) {
	ok := slices.ContainsFunc(s.findings(c), func(f finding) bool {
		return f.token == token && (confidence == "" || f.confidence == confidence)
	})
	s.Check(ok, "%s has no evidence %s %s, only %v", who(c), token, confidence, s.findings(c))
}

// Organisation asserts that c's record has the token with the organisation's name.
func (s *Server) Organisation(c *simulate.Client, token, org string) {
	ok := slices.ContainsFunc(s.findings(c), func(f finding) bool { return f.token == token && strings.Contains(f.org, org) })
	s.Check(ok, "%s has no evidence %s of %s, only %v", who(c), token, org, s.findings(c))
}

// Logged returns the log lines that match expr.
func (s *Server) Logged(expr string) (lines []string) {
	s.Flush()
	re := regexp.MustCompile(expr)
	for _, l := range s.log {
		if re.MatchString(l) {
			lines = append(lines, l)
		}
	}
	return lines
}

// told returns the number of distinct mailboxes that cs learned about, except the mailboxes in known.
func told(cs []*simulate.Client, known ...string) int {
	seen := make(map[string]bool)
	for _, c := range cs {
		c.Told(func(local string) { seen[local] = true })
	}
	for _, k := range known {
		delete(seen, strings.TrimSuffix(k, "@"+simulate.Domain))
	}
	return len(seen)
}

// AtMost asserts that cs learned about at most n mailboxes.
func (s *Server) AtMost(n int, cs []*simulate.Client, known ...string) {
	got := told(cs, known...)
	s.Check(got <= n, "learned about %d mailboxes; the limit is %d", got, n)
}

// tried returns the number of password attempts that the server answered.
func tried(cs ...*simulate.Client) (n int) {
	for _, c := range cs {
		n += c.Tries
	}
	return n
}

// Tried asserts that the server answered at most n password attempts by cs.
func (s *Server) Tried(n int, cs []*simulate.Client) {
	s.Check(tried(cs...) <= n, "%d passwords were answered; the limit is %d", tried(cs...), n)
}

// Shut asserts that c was rejected before it could log in or send mail.
func (s *Server) Shut(c *simulate.Client) {
	s.Check(len(c.Refusals()) > 0 && c.Tries == 0 && c.Mails() == 0, "%s was not rejected first: %s", who(c), answers(c))
}
