// Package mailimport adds the correspondents in smtpd's mail log to the filter's state.
// The import uses the control socket, or writes state.db directly if no filter is
// running.
package mailimport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/maillog"
	"scanwatch/internal/mailbox"
	"scanwatch/internal/text"
	"scanwatch/store"
	"scanwatch/store/history"
)

// KeepDays is the maximum age of imported mail, and also the time for which the state keeps known
// hosts.
const KeepDays = 400

const (
	maxFacts = 200_000 // facts that are collected before they go to the sink
	maxNames = 500_000 // distinct hosts, domains and users
)

// Options configures Import.
type Options struct {
	Dir     *statedir.Dir
	Program string // program version for new files
	Files   []string
	Stdin   io.Reader // read for the file name -
	Zone    *time.Location
	DryRun  bool // leave the state unchanged
	// If Again is set, Import also imports mail that was imported before or that is in the filter's
	// records.
	Again bool
	// Own lists this host's addresses.
	Own      []netip.Addr
	Warn     func(string)            // called for each read error; must be set
	Progress func(read, total int64) // may be nil
}

// A Result is the result of an import.
type Result struct {
	maillog.Counts
	From text.Time `json:"from,omitzero"` // time of smtpd's first line
	To   text.Time `json:"to,omitzero"`

	Hosts     int    `json:"hosts"`     // hosts with imported messages
	Delivered uint64 `json:"delivered"` // messages imported from these hosts
	Domains   int    `json:"domains"`   // domains to which users sent mail
	Users     int    `json:"users"`     // users who sent mail
	Sent      uint64 `json:"sent"`      // messages sent by these users, counted once per recipient

	Ignored []Ignored `json:"ignored"`
	// Recorded is the start of the first recorded session.
	Recorded text.Time `json:"recorded_since,omitzero"`
	DryRun   bool      `json:"dry_run"`
	Running  bool      `json:"filter_running"`
}

// Ignored is the number of envelopes that were not imported for one reason.
type Ignored struct {
	Reason string `json:"reason"`
	Number uint64 `json:"envelopes"`
}

// maxRejected is the number of rejected recipients that makes a session suspicious. All mail in
// such a session is ignored, because a directory harvest also reaches mailboxes that exist.
const maxRejected = 5

// Reasons for ignoring an envelope, in output order.
const (
	nullSender = iota
	roleAccount
	harvest
	ownHost
	tooOld
	importedBefore
	recorded
	reasons
)

var reasonTexts = [reasons]string{
	"without a sender", "to a role account such as postmaster",
	fmt.Sprintf("in a session with %d rejected recipients or more", maxRejected), "from this host or a private network",
	fmt.Sprintf("older than %d days", KeepDays), "imported before", "recorded by the filter",
}

// An importer collects facts and passes them to the state.
type importer struct {
	o       Options
	r       Result
	now     time.Time
	done    periods // periods imported earlier
	read    fileHosts
	sink    func([]control.Fact) error
	facts   map[factKey]control.Fact
	ignored [reasons]uint64
	own     map[netip.Addr]bool
	hosts   map[netip.Addr]struct{}
	domains map[string]struct{}
	users   map[string]struct{}
	message uint32 // id of the last message counted
	err     error  // error from the sink
}

// A factKey identifies a fact. Messages with the same key are combined.
type factKey struct {
	day     int64      // 0 for a mailbox
	addr    netip.Addr // invalid for a mailbox, or if users sent mail to name
	name    string     // domain of the sender, or domain to which users sent mail
	mailbox string
}

// Import reads logs and adds their facts to the state. The state directory also stores which
// periods have been imported, and lines from these periods are ignored. If root runs Import, the
// logs are opened as root, but the state directory is used with its owner's rights.
func Import(o Options) (Result, error) {
	m := importer{o: o, now: o.Dir.Now(), facts: map[factKey]control.Fact{}, own: map[netip.Addr]bool{},
		hosts: map[netip.Addr]struct{}{}, domains: map[string]struct{}{}, users: map[string]struct{}{}}
	for _, a := range o.Own {
		m.own[a.Unmap()] = true
	}
	logs, err := maillog.Open(o.Files, o.Stdin, m.now, o.Zone)
	if err != nil {
		return m.r, err
	}
	err = owner.Do(o.Dir.Path, func() error { return m.run(logs) })
	return m.r, errors.Join(err, maillog.CloseAll(logs))
}

// run imports the logs, which are already open.
func (m *importer) run(logs []*maillog.Log) (err error) {
	if !m.o.Again {
		if m.done, err = readPeriods(m.o.Dir.Path); err != nil {
			return err
		}
	}
	first, err := firstRecord(m.o.Dir, m.o.Warn)
	if err != nil {
		return err
	}
	if !m.o.Again {
		m.r.Recorded = text.At(first)
	}
	finish, err := m.connect()
	if err != nil {
		return err
	}
	if err = errors.Join(m.readAll(logs), finish()); err != nil {
		return err
	}
	m.result()
	if m.o.DryRun {
		return nil
	}
	return m.done.save(m.o.Dir.Path, m.read)
}

// readAll reads the logs and passes their facts to the sink.
func (m *importer) readAll(logs []*maillog.Log) (err error) {
	m.r.Counts, err = maillog.Read(logs, maillog.Options{Delivered: m.delivered, Sent: m.sent, Line: m.read.add, Progress: m.o.Progress})
	m.flush()
	return errors.Join(err, m.err)
}

// result fills in the remaining fields of m.r.
func (m *importer) result() {
	r := &m.r
	r.DryRun, r.Hosts, r.Domains, r.Users = m.o.DryRun, len(m.hosts), len(m.domains), len(m.users)
	if r.First != 0 {
		r.From, r.To = text.At(time.UnixMicro(r.First).UTC()), text.At(time.UnixMicro(r.Last).UTC())
	}
	r.Ignored = []Ignored{}
	for reason, n := range m.ignored {
		if n > 0 {
			r.Ignored = append(r.Ignored, Ignored{reasonTexts[reason], n})
		}
	}
}

// firstRecord returns the start of the first recorded session. Deliveries after that time are
// already in the state.
func firstRecord(d *statedir.Dir, warn func(string)) (at time.Time, err error) {
	r, err := d.Open()
	if err != nil {
		return at, err
	}
	defer r.Close()
	r.Warn(warn)
	first := func(rec *store.Record) error {
		at = rec.Start
		return history.ErrStop
	}
	err = history.Walk(r, time.Time{}, time.Time{}, history.Visitor{Session: first, Sum: first})
	return at, err
}

// connect opens the sink for facts, which is the running filter or state.db. A dry run
// has no sink. The returned function writes all facts to disk and closes the sink.
func (m *importer) connect() (finish func() error, err error) {
	if m.o.DryRun {
		m.sink = func([]control.Fact) error { return nil }
		return func() error { return nil }, nil
	}
	client, err := control.Dial(m.o.Dir.Path)
	switch {
	case err == nil:
		// The connection only served to check that the filter is running. The connection is not
		// kept, because reading a log may take longer than the filter's idle timeout.
		client.Close()
		m.r.Running = true
		m.sink = func(facts []control.Fact) error { return toFilter(m.o.Dir.Path, facts) }
		return func() error { return nil }, nil
	case !errors.Is(err, control.ErrNotRunning):
		return nil, err
	}
	return m.openState()
}

// toFilter passes facts to the running filter and waits until they are on disk.
func toFilter(dir string, facts []control.Fact) error {
	client, err := control.Dial(dir)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Learn(facts); err != nil {
		return err
	}
	return client.Flush()
}

// openState opens state.db. If a filter is started during the import, it waits for the file.
func (m *importer) openState() (finish func() error, err error) {
	state, file, err := m.o.Dir.OpenState(m.o.Program)
	if err != nil {
		return nil, err
	}
	m.sink = func(facts []control.Fact) error {
		for i := range facts {
			control.Apply(state, &facts[i])
		}
		return file.Flush(context.Background())
	}
	return file.Close, nil
}

// skip counts an envelope that is not imported, and always returns true.
func (m *importer) skip(reason int) bool {
	m.ignored[reason]++
	return true
}

// skipped reports whether a fact with the given time must be ignored. If so, it counts the fact.
func (m *importer) skipped(server string, at int64) bool {
	switch {
	case at < m.now.AddDate(0, 0, -KeepDays).UnixMicro():
		return m.skip(tooOld)
	case m.done.covers(server, at):
		return m.skip(importedBefore)
	case !m.r.Recorded.IsZero() && at >= m.r.Recorded.UnixMicro():
		return m.skip(recorded)
	}
	return false
}

// shared is the address space of carrier-grade NAT (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// private reports whether an address does not identify a remote host.
func (m *importer) private(a netip.Addr) bool {
	return m.own[a] || a.IsLoopback() || a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsUnspecified() || shared.Contains(a)
}

// delivered handles an envelope accepted from a remote host. Bounces and mail to role
// accounts do not improve a host's standing, because any client can send them. Nevertheless, each
// envelope shows that its mailbox exists.
func (m *importer) delivered(d *maillog.Delivery) {
	local, _, _ := strings.Cut(d.Recipient, "@")
	_, domain, _ := strings.Cut(d.Sender, "@")
	domain = strings.ToLower(domain)
	switch {
	case m.skipped(d.Server, d.Time):
		return
	case m.private(d.Addr):
		m.skip(ownHost)
		return
	}
	if n := len(d.Recipient); n > 0 && n <= control.MaxMailbox {
		m.add(control.Fact{At: d.Time, Mailbox: d.Recipient}, factKey{mailbox: strings.ToLower(d.Recipient)})
	}
	switch {
	case d.Sender == "":
		m.skip(nullSender)
		return
	case mailbox.IsRole(local):
		m.skip(roleAccount)
		return
	case d.Rejected >= maxRejected:
		m.skip(harvest)
		return
	case d.MsgID == m.message && m.r.Delivered > 0:
		return // another recipient of the same message
	}
	m.message = d.MsgID
	m.r.Delivered++
	count(m.hosts, d.Addr)
	m.add(control.Fact{At: d.Time, Addr: d.Addr, Messages: 1, Sender: cut(domain)}, factKey{day: day(d.Time), addr: d.Addr, name: cut(domain)})
}

// sent handles an envelope sent by a user.
func (m *importer) sent(s *maillog.Sent) {
	if m.skipped(s.Server, s.Time) {
		return
	}
	m.r.Sent++
	count(m.domains, s.Domain)
	if s.User != "" {
		count(m.users, s.User)
	}
	m.add(control.Fact{At: s.Time, Domain: cut(s.Domain)}, factKey{day: day(s.Time), name: cut(s.Domain)})
}

// cut limits a domain to 255 bytes (RFC 1035).
func cut(domain string) string { return domain[:min(len(domain), 255)] }

func count[K comparable](set map[K]struct{}, k K) {
	if len(set) < maxNames {
		set[k] = struct{}{}
	}
}

// maxMessages is the maximum value of Fact.Messages.
const maxMessages = 1 << 16

// day returns the number of a time's day since 1970.
func day(at int64) int64 { return at / (24 * time.Hour).Microseconds() }

// add merges a fact with others that have the same key.
func (m *importer) add(f control.Fact, k factKey) {
	if old, ok := m.facts[k]; ok {
		f.At, f.Messages = max(f.At, old.At), min(f.Messages+old.Messages, maxMessages)
	}
	m.facts[k] = f
	if len(m.facts) >= maxFacts {
		m.flush()
	}
}

// flush passes the collected facts to the sink, oldest first.
func (m *importer) flush() {
	list := make([]control.Fact, 0, len(m.facts))
	for _, f := range m.facts {
		list = append(list, f)
	}
	clear(m.facts)
	slices.SortFunc(list, func(a, b control.Fact) int {
		return cmp.Or(cmp.Compare(a.At, b.At), a.Addr.Compare(b.Addr), cmp.Compare(a.Sender+a.Domain+a.Mailbox, b.Sender+b.Domain+b.Mailbox))
	})
	if m.err == nil && len(list) > 0 {
		m.err = m.sink(list)
	}
}

// Text writes the result as text.
func (r *Result) Text(w io.Writer, zone *time.Location) {
	fmt.Fprintf(w, "files      %d\n", r.Files)
	fmt.Fprintf(w, "lines      %d, %d of smtpd\n", r.Lines, r.Smtpd)
	if !r.From.IsZero() {
		fmt.Fprintf(w, "from       %s\nto         %s\n", r.From.In(zone).Format(time.DateTime), r.To.In(zone).Format(time.DateTime))
	}
	fmt.Fprintf(w, "sessions   %d\n", r.Sessions)
	fmt.Fprintf(w, "messages   %d\n", r.Messages)
	fmt.Fprintf(w, "delivered  %d from %s\n", r.Delivered, text.Plural(r.Hosts, "host"))
	fmt.Fprintf(w, "sent       %d to %s by %s\n", r.Sent, text.Plural(r.Domains, "domain"), text.Plural(r.Users, "user"))
	heading := "ignored"
	for _, i := range r.Ignored {
		fmt.Fprintf(w, "%-11s%s %s\n", heading, text.Plural(i.Number, "envelope"), i.Reason)
		heading = ""
	}
	for _, n := range []struct {
		n          uint64
		noun, what string
	}{
		{r.Orphans, "envelope", "without the start of the session"},
		{r.Duplicates, "envelope", "logged twice"},
		{r.Unknown, "line", "of smtpd not understood"},
		{r.Unstamped, "line", "without time and program"},
		{r.TooLong, "line", "of more than 64 KiB"},
	} {
		if n.n > 0 {
			fmt.Fprintf(w, "%-11s%s %s\n", heading, text.Plural(n.n, n.noun), n.what)
			heading = ""
		}
	}
	if r.DryRun {
		fmt.Fprintln(w, "nothing was imported (--dry-run)")
	}
}
