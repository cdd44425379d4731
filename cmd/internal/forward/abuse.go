package forward

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/fetch"
	"scanwatch/cmd/internal/output"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup/feed"
	"scanwatch/filter/memory"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/store/export"
)

// AbuseIPDB is the URL to which reports are sent (API v2).
const AbuseIPDB = "https://api.abuseipdb.com/api/v2/report"

// Limits of reports.
const (
	reportAgain  = 15 * time.Minute // AbuseIPDB accepts one report per address in this time
	suspectAfter = time.Hour        // lifetime of evidence against a host
	sparedAfter  = 24 * time.Hour   // time for which a host that sends bounces is not reported
	maxSuspects  = 10_000
	maxReported  = 10_000
)

// A suspect is a host, or all hosts in an IPv6 /64, with evidence that has not been reported.
type suspect struct {
	addr     netip.Addr // address in the latest offence or ban
	last     time.Time
	evidence []string // tokens, with any confidence
	certain  bool     // an offence has high confidence
	banned   bool     // banned by an enforced rule that does not depend on a DNS list, because lists can be wrong
	sessions map[uint64]bool
	names    []control.Names // latest names; if one of them is exempt, the host is not reported
}

// maxNames is the maximum number of names stored for a suspect.
const maxNames = 4

// hostOf returns an IPv4 address unchanged, and the first address of an IPv6 address's /64.
func hostOf(a netip.Addr) netip.Addr { return memory.Source(a.Unmap()).Addr() }

// A report is a report on one host. A report contains neither recipients nor text from clients.
type report struct {
	IP         netip.Addr `json:"ip"`
	Categories []int      `json:"categories"`
	Comment    string     `json:"comment"`
	Time       time.Time  `json:"time"`
	// Names are sent only to the filter, which checks whether they are exempt.
	Names []control.Names `json:"names,omitempty"`
}

// hosts returns the names that the filter must check.
func (r *report) hosts() []control.Names {
	return append([]control.Names{{Addr: r.IP}}, r.Names[:min(len(r.Names), maxNames)]...)
}

// A reporter collects the hosts to report. Its methods may be called concurrently. The keys of its
// maps are results of hostOf.
type reporter struct {
	file  string // stores the times of reports and exemptions
	queue *queue // of the reports

	saving sync.Mutex // held while the file is written

	mu sync.Mutex
	// Most hosts have no reportable evidence. Such hosts are stored separately, so that they never
	// displace suspects.
	innocent, suspects map[netip.Addr]*suspect

	exempt   map[netip.Addr]time.Time // hosts that are exempt or have sent bounces
	reported map[netip.Addr]time.Time
	overflow time.Time // latest time at which exempt was full
	unsaved  bool      // exempt has hosts that the file lacks
	dropped  uint64    // reports that can no longer be sent
}

// reporterFile is the content of a reporter's file.
type reporterFile struct {
	Reported map[netip.Addr]time.Time `json:"reported"`
	Exempt   map[netip.Addr]time.Time `json:"exempt"`
	Overflow time.Time                `json:"overflow,omitzero"`
}

func newReporter(q *queue) *reporter {
	return &reporter{file: filepath.Join(q.dir, "reported"), queue: q, innocent: map[netip.Addr]*suspect{}, suspects: map[netip.Addr]*suspect{},
		exempt: map[netip.Addr]time.Time{}, reported: map[netip.Addr]time.Time{}}
}

// load reads the file written by earlier processes. If the file is unreadable, any host could be
// exempt, so no host is reported for a day.
func (r *reporter) load(now time.Time) error {
	data, err := readFile(r.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var f reporterFile
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		r.overflow, r.unsaved = now, true
		return fmt.Errorf("read %s: %w", r.file, err)
	}
	maps.Copy(r.exempt, f.Exempt)
	maps.Copy(r.reported, f.Reported)
	r.overflow = f.Overflow
	return nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// save writes the file.
func (r *reporter) save() error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	data, err := json.Marshal(reporterFile{Reported: r.reported, Exempt: r.exempt, Overflow: r.overflow})
	r.unsaved = false
	r.mu.Unlock()
	if err == nil {
		err = output.Replace(r.file, 0o600, func(w io.Writer) error { _, err := w.Write(data); return err })
	}
	if err != nil {
		r.mu.Lock()
		r.unsaved = true
		r.mu.Unlock()
	}
	return err
}

// saveExempt writes the file if an exempt host is missing from it.
func (r *reporter) saveExempt() error {
	r.mu.Lock()
	unsaved := r.unsaved
	r.mu.Unlock()
	if !unsaved {
		return nil
	}
	return r.save()
}

// add records an event.
func (r *reporter) add(e *events.Event) {
	if e.Event == "unban" {
		if p, err := netip.ParsePrefix(e.Prefix); err == nil {
			r.drop(p.Masked())
		}
		return
	}
	src := e.Src.Unmap()
	if !src.IsValid() || !src.IsGlobalUnicast() || src.IsPrivate() || feed.Forbidden(netip.PrefixFrom(src, src.BitLen())) != "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case e.Event == "exempt", e.Evidence == "backscatter", e.Evidence == "account-abuse", e.Reason != "" && (e.Event == "verdict" || e.Event == "finding"):
		// The filter exempts the host, or the host returns mail with forged senders, or it uses a
		// stolen account.
		r.exemptAt(hostOf(src), e.Time)
		return
	case e.Event == "finding" && len(offences(e.Evidence)) > 0, e.Event == "ban" && e.Would == "" && !e.Listed:
		r.suspect(hostOf(src), e)
	}
}

// offences describes the evidence that is a reason to report a banned host, in sentences.
func offences(evidence ...string) []string {
	_, words := export.Offences(evidence, true)
	return words
}

// suspect records an event concerning a host. The caller holds mu.
func (r *reporter) suspect(host netip.Addr, e *events.Event) {
	s := cmp.Or(r.suspects[host], r.innocent[host])
	if s == nil {
		s = &suspect{sessions: map[uint64]bool{}}
		for other := range r.innocent {
			if len(r.innocent) < maxSuspects {
				break
			}
			delete(r.innocent, other)
		}
		r.innocent[host] = s
	}
	s.see(e)
	if r.suspects[host] != nil || !s.reportable() {
		return
	}
	delete(r.innocent, host)
	if len(r.suspects) >= maxSuspects {
		r.dropped++
		return
	}
	r.suspects[host] = s
}

// see records an event.
func (s *suspect) see(e *events.Event) {
	s.last, s.addr = later(s.last, e.Time), e.Src.Unmap()
	s.name(e)
	if len(s.sessions) < 1000 {
		s.sessions[e.Session] = true
	}
	if e.Event == "ban" {
		s.banned = true
		return
	}
	if !slices.Contains(s.evidence, e.Evidence) && len(s.evidence) < 64 {
		s.evidence = append(s.evidence, e.Evidence)
	}
	if _, words := export.Offences([]string{e.Evidence}, false); e.Confidence == "high" && len(words) > 0 {
		s.certain = true
	}
}

// name stores the names in an event.
func (s *suspect) name(e *events.Event) {
	n := control.Names{Addr: s.addr, Helo: string(e.Helo)}
	if e.FCrDNS == smtp.FCrDNSPass.String() {
		n.RDNS = string(e.RDNS)
	}
	if n == (control.Names{Addr: s.addr}) {
		return
	}
	s.names = append(slices.DeleteFunc(s.names, func(o control.Names) bool { return o == n }), n)
	s.names = s.names[max(len(s.names)-maxNames, 0):]
}

// reportable reports whether there is enough evidence.
func (s *suspect) reportable() bool {
	_, words := export.Offences(s.evidence, s.banned)
	return (s.certain || s.banned) && len(words) > 0
}

// drop drops the evidence against the hosts that overlap a prefix, and their queued reports. It
// counts the dropped reports.
func (r *reporter) drop(p netip.Prefix) {
	within := func(a netip.Addr) bool { return p.Overlaps(memory.Source(a)) }
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.innocent, func(a netip.Addr, _ *suspect) bool { return within(a) })
	maps.DeleteFunc(r.suspects, func(a netip.Addr, _ *suspect) bool {
		if within(a) {
			r.dropped++
		}
		return within(a)
	})
	r.queue.removeReports(within, true)
}

// dropAll drops all evidence and all queued reports.
func (r *reporter) dropAll() {
	r.drop(netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	r.drop(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
}

// exemptAt records that a host is exempt. The caller holds mu.
func (r *reporter) exemptAt(src netip.Addr, at time.Time) {
	_, known := r.exempt[src]
	if !known && len(r.exempt) >= maxSuspects {
		// In the file, this time may be up to an hour old, so that the file is not written for each
		// event.
		r.unsaved = r.unsaved || at.Sub(r.overflow) > time.Hour
		r.overflow = later(r.overflow, at)
		return
	}
	r.unsaved = r.unsaved || !known || at.Sub(r.exempt[src]) > time.Hour
	r.exempt[src] = later(r.exempt[src], at)
}

// lose drops all evidence, because the missing events may have exempted any host.
func (r *reporter) lose(losses) { r.dropAll() }

// lost returns the number of reports that were dropped since the previous call.
func (r *reporter) lost() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.dropped
	r.dropped = 0
	return n
}

// due returns the hosts to report, and drops old evidence. queued contains the addresses that
// already have a queued report.
func (r *reporter) due(now time.Time, queued map[string]bool) (due []report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit(now)
	dropBefore(r.exempt, now.Add(-sparedAfter))
	dropBefore(r.reported, now.Add(-reportAgain))
	maps.DeleteFunc(r.innocent, func(_ netip.Addr, s *suspect) bool { return s.last.Before(now.Add(-suspectAfter)) })
	for host, s := range r.suspects {
		_, again := r.reported[host]
		_, spared := r.exempt[host]
		switch {
		case s.last.Before(now.Add(-suspectAfter)):
			delete(r.suspects, host)
			if !spared {
				r.dropped++
			}
			continue
		case again || spared || queued[host.String()] || len(r.reported)+len(due) >= maxReported:
			continue
		case now.Sub(r.overflow) < sparedAfter:
			continue // exempt was full, so the host may be exempt
		}
		categories, words := export.Offences(s.evidence, s.banned)
		due = append(due, report{IP: s.addr, Categories: categories, Time: s.last.UTC(), Names: slices.Clone(s.names),
			Comment: text.Plural(len(s.sessions), "SMTP session") + ": " + strings.Join(words, ", ")})
	}
	slices.SortFunc(due, func(a, b report) int { return a.IP.Compare(b.IP) })
	return due
}

// limit replaces times in the future, which are due to a wrong clock. Entries with such times would
// not expire.
func (r *reporter) limit(now time.Time) {
	for _, times := range []map[netip.Addr]time.Time{r.exempt, r.reported} {
		for a, at := range times {
			times[a] = earlier(at, now)
		}
	}
	for _, hosts := range []map[netip.Addr]*suspect{r.innocent, r.suspects} {
		for _, s := range hosts {
			s.last = earlier(s.last, now)
		}
	}
	r.overflow = earlier(r.overflow, now)
}

func dropBefore(times map[netip.Addr]time.Time, before time.Time) {
	for a, at := range times {
		if at.Before(before) {
			delete(times, a)
		}
	}
}

// stored drops the evidence against a host after its report has been added to the queue. If the
// evidence was dropped between the call to due and this call, stored removes the report from the
// queue.
func (r *reporter) stored(a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	host := hostOf(a)
	if r.suspects[host] == nil {
		r.queue.removeReports(func(a netip.Addr) bool { return a == host }, false) // drop has already counted the report
	}
	delete(r.suspects, host)
}

// spare records that a host must not be reported.
func (r *reporter) spare(a netip.Addr, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.suspects, hostOf(a))
	r.exemptAt(hostOf(a), now)
}

// spared reports whether a host is exempt.
func (r *reporter) spared(a netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, exempt := r.exempt[hostOf(a)]
	return exempt
}

// attempt saves the time of a host's report before the report is sent, because the process may end
// before it receives the response.
func (r *reporter) attempt(a netip.Addr, now time.Time) error {
	r.setReported(a, now)
	return r.save()
}

// setReported sets the time of a host's latest report. A zero time deletes it.
func (r *reporter) setReported(a netip.Addr, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at.IsZero() {
		delete(r.reported, hostOf(a))
		return
	}
	r.reported[hostOf(a)] = at
}

// An abuseIPDB is the destination of reports.
type abuseIPDB struct {
	*client
	url string
	key string // file that contains the key
}

func (a *abuseIPDB) deliver(ctx context.Context, data []byte) error {
	var r report
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	key, err := fetch.ReadKey(a.key)
	if err != nil {
		return err
	}
	if _, value, ok := strings.Cut(key, ":"); ok { // the key file may also be in use by scanwatch update
		key = strings.TrimSpace(value)
	}
	var categories []string
	for _, n := range r.Categories {
		categories = append(categories, strconv.Itoa(n))
	}
	form := url.Values{"ip": {r.IP.String()}, "categories": {strings.Join(categories, ",")}, "comment": {r.Comment}, "timestamp": {r.Time.Format(time.RFC3339)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Key", key)
	reply, err := a.post(req)
	if err != nil && aboutAddress(reply) {
		return fmt.Errorf("%w: %w; AbuseIPDB does not accept this address, or received a report from this account in the last 15 minutes", errRejected, err)
	}
	return err
}

// aboutAddress reports whether a negative response concerns only the report's address. In that
// case, reports on other addresses need not wait.
func aboutAddress(reply []byte) bool {
	var answer struct {
		Errors []struct{ Source struct{ Parameter string } }
	}
	return json.Unmarshal(reply, &answer) == nil && len(answer.Errors) > 0 && answer.Errors[0].Source.Parameter == "ip"
}
