// Package mailimport adds the correspondents in smtpd's mail log to the state of the
// filter. The import uses the control socket, or writes state.db if no filter is running.
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

// KeepDays is the maximum age of imported mail. The state keeps a known host for the same
// time.
const KeepDays = 400

const (
	maxFacts = 200_000 // number of facts that are collected before they are passed to the sink
	maxNames = 500_000 // maximum number of distinct hosts, domains and users
)

// Options contains the settings of Import.
type Options struct {
	Dir     *statedir.Dir
	Program string // program version for new files
	Files   []string
	Stdin   io.Reader // content of the file -
	Zone    *time.Location
	DryRun  bool // do not change the state
	// If Again is set, mail that was imported before or that the filter has recorded is
	// imported again.
	Again bool
	// Own contains the addresses of this host.
	Own      []netip.Addr
	Warn     func(string)            // called if records cannot be read; must be set
	Progress func(read, total int64) // may be nil
}

// A Result is the result of an import.
type Result struct {
	maillog.Counts
	From text.Time `json:"from,omitzero"` // time of the first line of smtpd
	To   text.Time `json:"to,omitzero"`

	Hosts     int    `json:"hosts"`     // hosts with imported messages
	Delivered uint64 `json:"delivered"` // number of these messages
	Domains   int    `json:"domains"`   // domains to which users sent mail
	Users     int    `json:"users"`     // users that sent this mail
	Sent      uint64 `json:"sent"`      // number of messages of these users, counted for each recipient

	Ignored []Ignored `json:"ignored"`
	// Recorded is the start of the first session in the records of the filter.
	Recorded text.Time `json:"recorded_since,omitzero"`
	DryRun   bool      `json:"dry_run"`
	Running  bool      `json:"filter_running"`
}

// Ignored counts the envelopes that were not imported for the same reason.
type Ignored struct {
	Reason string `json:"reason"`
	Number uint64 `json:"envelopes"`
}

// If a session has at least maxRejected rejected recipients, its mail is ignored. A
// session with many rejected recipients may be a directory harvest, which also sends to
// existing mailboxes.
const maxRejected = 5

// These are the reasons for ignoring an envelope, in the order of the output.
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
	done    periods // periods of earlier imports
	read    fileHosts
	sink    func([]control.Fact) error
	facts   map[factKey]control.Fact
	ignored [reasons]uint64
	own     map[netip.Addr]bool
	hosts   map[netip.Addr]struct{}
	domains map[string]struct{}
	users   map[string]struct{}
	message uint32 // id of the last counted message
	err     error  // error of the sink
}

// factKey identifies a fact. Messages with the same key are combined.
type factKey struct {
	day  int64
	addr netip.Addr // invalid for a domain to which users sent mail
	name string     // domain of the sender, or domain to which users sent mail
}

// Import reads logs and adds their facts to the state. The state directory stores the
// periods of earlier imports. Import ignores lines from a period that was imported
// earlier. If root runs Import, root opens the logs, and the owner of the state directory
// uses that directory.
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

// result completes the result m.r.
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

// firstRecord returns the start of the first recorded session. The state already includes
// deliveries since that time.
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

// connect sets the sink of the facts to the running filter or to state.db. A dry run has
// no sink. The returned function writes all facts to disk and closes the sink.
func (m *importer) connect() (finish func() error, err error) {
	if m.o.DryRun {
		m.sink = func([]control.Fact) error { return nil }
		return func() error { return nil }, nil
	}
	client, err := control.Dial(m.o.Dir.Path)
	switch {
	case err == nil:
		// The connection only checks that the filter is running. Close it, because
		// reading a log may last longer than the idle timeout of the filter.
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

// openState opens state.db. A filter that starts during the import waits for the file.
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

// skip counts an envelope that is not imported. The result is always true.
func (m *importer) skip(reason int) bool {
	m.ignored[reason]++
	return true
}

// skipped reports whether a fact with this time must be ignored. A fact that is ignored
// is counted.
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

// delivered handles an envelope that was accepted from a remote host. Bounces and mail to
// role accounts do not improve the standing of a host, because any client can send them.
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
	m.add(control.Fact{At: d.Time, Addr: d.Addr, Messages: 1, Sender: cut(domain)}, cut(domain))
}

// sent handles an envelope that a user sent.
func (m *importer) sent(s *maillog.Sent) {
	if m.skipped(s.Server, s.Time) {
		return
	}
	m.r.Sent++
	count(m.domains, s.Domain)
	if s.User != "" {
		count(m.users, s.User)
	}
	m.add(control.Fact{At: s.Time, Domain: cut(s.Domain)}, cut(s.Domain))
}

// cut limits a domain to 255 bytes (RFC 1035).
func cut(domain string) string { return domain[:min(len(domain), 255)] }

func count[K comparable](set map[K]struct{}, k K) {
	if len(set) < maxNames {
		set[k] = struct{}{}
	}
}

// maxMessages is the maximum of Fact.Messages.
const maxMessages = 1 << 16

// add merges a fact with other facts of the same key.
func (m *importer) add(f control.Fact, name string) {
	k := factKey{day: f.At / (24 * time.Hour).Microseconds(), addr: f.Addr, name: name}
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
		return cmp.Or(cmp.Compare(a.At, b.At), a.Addr.Compare(b.Addr), cmp.Compare(a.Sender+a.Domain, b.Sender+b.Domain))
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
