package forward

import (
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

	"scanwatch/cmd/internal/fetch"
	"scanwatch/cmd/internal/output"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/text"
	"scanwatch/store/export"
)

// AbuseIPDB is the URL of its reports, API v2.
const AbuseIPDB = "https://api.abuseipdb.com/api/v2/report"

// The limits of reports.
const (
	reportAgain  = 15 * time.Minute // AbuseIPDB accepts one report of an address in this time
	suspectAfter = time.Hour        // evidence against a host expires
	sparedAfter  = 24 * time.Hour   // a host that sends bounces is not reported
	maxSuspects  = 10_000
	maxReported  = 10_000
)

// A suspect is a host with evidence that has not been reported.
type suspect struct {
	Last     time.Time `json:"last"`
	Evidence []string  `json:"evidence"` // tokens, with any confidence
	Certain  bool      `json:"certain"`  // an offence with high confidence
	Banned   bool      `json:"banned"`   // by a rule that was enforced
	Sessions int       `json:"sessions"` // seen by earlier processes
	seen     map[uint64]bool
}

// sessions returns the number of sessions.
func (s *suspect) sessions() int { return s.Sessions + len(s.seen) }

// A report is a report of a host. It has no recipients, and no texts of clients.
type report struct {
	IP         netip.Addr `json:"ip"`
	Categories []int      `json:"categories"`
	Comment    string     `json:"comment"`
	Time       time.Time  `json:"time"`
}

// reporter collects the hosts to report. It is safe for concurrent use.
type reporter struct {
	file string // with the times of reports and of exemptions

	saving sync.Mutex // held while the file is written

	mu       sync.Mutex
	suspects map[netip.Addr]*suspect
	exempt   map[netip.Addr]time.Time // hosts that send bounces or are exempt
	reported map[netip.Addr]time.Time
	overflow time.Time // latest time at which exempt had no room
	unsaved  bool      // exempt has hosts that the file lacks
	dropped  uint64    // reports that are no longer possible
}

// reporterFile is the content of the file of a reporter.
type reporterFile struct {
	Reported map[netip.Addr]time.Time `json:"reported"`
	Exempt   map[netip.Addr]time.Time `json:"exempt"`
	Overflow time.Time                `json:"overflow,omitzero"`
	Suspects map[netip.Addr]*suspect  `json:"suspects,omitempty"` // at the end of the service
}

func newReporter(dir string) *reporter {
	return &reporter{file: filepath.Join(dir, "reported"), suspects: map[netip.Addr]*suspect{}, exempt: map[netip.Addr]time.Time{}, reported: map[netip.Addr]time.Time{}}
}

// load reads the file that earlier processes have written. If it is unreadable, any host
// could be exempt, so that none is reported for a day.
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
	for a, s := range f.Suspects {
		if s != nil && len(r.suspects) < maxSuspects {
			s.seen = map[uint64]bool{}
			r.suspects[a] = s
		}
	}
	r.overflow = f.Overflow
	return nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// save writes the file, with the suspects if the service ends.
func (r *reporter) save(end bool) error {
	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	f := reporterFile{Reported: r.reported, Exempt: r.exempt, Overflow: r.overflow}
	if end {
		for _, s := range r.suspects {
			s.Sessions = s.sessions()
			clear(s.seen)
		}
		f.Suspects = r.suspects
	}
	data, err := json.Marshal(f)
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

// saveExempt writes the file if it lacks an exempt host.
func (r *reporter) saveExempt() error {
	r.mu.Lock()
	unsaved := r.unsaved
	r.mu.Unlock()
	if !unsaved {
		return nil
	}
	return r.save(false)
}

// add records an event.
func (r *reporter) add(e *events.Event) {
	src := e.Src.Unmap()
	if !src.IsValid() || !src.IsGlobalUnicast() || src.IsPrivate() || feed.Forbidden(netip.PrefixFrom(src, src.BitLen())) != "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case e.Event == "exempt", e.Evidence == "backscatter", e.Evidence == "account-abuse", e.Event == "verdict" && e.Reason != "":
		// The filter exempts the host, the host returns mail with forged senders, or the account
		// was stolen from a user.
		r.exemptAt(src, e.Time)
		return
	case e.Event != "finding" && (e.Event != "ban" || e.Would != ""):
		return
	}
	s := r.suspects[src]
	if s == nil {
		s = &suspect{seen: map[uint64]bool{}}
		if len(r.suspects) >= maxSuspects {
			if s.see(e); s.reportable() {
				r.dropped++
			}
			return
		}
		r.suspects[src] = s
	}
	s.see(e)
}

// see records an event.
func (s *suspect) see(e *events.Event) {
	s.Last = later(s.Last, e.Time)
	if s.sessions() < 1000 {
		s.seen[e.Session] = true
	}
	if e.Event == "ban" {
		s.Banned = true
		return
	}
	if !slices.Contains(s.Evidence, e.Evidence) && len(s.Evidence) < 64 {
		s.Evidence = append(s.Evidence, e.Evidence)
	}
	if _, words := export.Offences([]string{e.Evidence}, false); e.Confidence == "high" && len(words) > 0 {
		s.Certain = true
	}
}

// reportable reports whether there is enough evidence.
func (s *suspect) reportable() bool {
	_, words := export.Offences(s.Evidence, s.Banned)
	return (s.Certain || s.Banned) && len(words) > 0
}

// exemptAt records that a host is exempt. The caller holds mu.
func (r *reporter) exemptAt(src netip.Addr, at time.Time) {
	_, known := r.exempt[src]
	if !known && len(r.exempt) >= maxSuspects {
		// The file has the time to the hour, so that it is not written for each event.
		r.unsaved = r.unsaved || at.Sub(r.overflow) > time.Hour
		r.overflow = later(r.overflow, at)
		return
	}
	r.unsaved = r.unsaved || !known || at.Sub(r.exempt[src]) > time.Hour
	r.exempt[src] = later(r.exempt[src], at)
}

// lose does nothing: the number of hosts in missing events is unknown.
func (r *reporter) lose(losses) {}

// lost returns the number of reports that were dropped since the previous call.
func (r *reporter) lost() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.dropped
	r.dropped = 0
	return n
}

// due returns the hosts to report, and drops old evidence. Reports of the addresses in
// queued wait already.
func (r *reporter) due(now time.Time, queued map[string]bool) (due []report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limit(now)
	dropBefore(r.exempt, now.Add(-sparedAfter))
	dropBefore(r.reported, now.Add(-reportAgain))
	for src, s := range r.suspects {
		_, again := r.reported[src]
		_, spared := r.exempt[src]
		switch {
		case s.Last.Before(now.Add(-suspectAfter)):
			delete(r.suspects, src)
			if s.reportable() && !spared {
				r.dropped++
			}
			continue
		case again || spared || !s.reportable() || queued[src.String()] || len(r.reported)+len(due) >= maxReported:
			continue
		case now.Sub(r.overflow) < sparedAfter:
			continue // the host could be one of those without room
		}
		categories, words := export.Offences(s.Evidence, s.Banned)
		due = append(due, report{IP: src, Categories: categories, Time: s.Last.UTC(),
			Comment: text.Plural(s.sessions(), "SMTP session") + ": " + strings.Join(words, ", ")})
	}
	slices.SortFunc(due, func(a, b report) int { return a.IP.Compare(b.IP) })
	return due
}

// limit replaces times in the future, because the clock was wrong. They would not expire.
func (r *reporter) limit(now time.Time) {
	for _, times := range []map[netip.Addr]time.Time{r.exempt, r.reported} {
		for a, at := range times {
			times[a] = earlier(at, now)
		}
	}
	for _, s := range r.suspects {
		s.Last = earlier(s.Last, now)
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

// forget drops the evidence against a host, whose report is in the queue.
func (r *reporter) forget(src netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.suspects, src)
}

// spare records that a host must not be reported.
func (r *reporter) spare(src netip.Addr, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.suspects, src)
	r.exemptAt(src, now)
}

// spared reports whether a host is exempt.
func (r *reporter) spared(src netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, exempt := r.exempt[src]
	return exempt
}

// done records that a host was reported.
func (r *reporter) done(src netip.Addr, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reported[src] = now
}

// An abuseIPDB sends reports.
type abuseIPDB struct {
	*client
	url string
	key string // file
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
	if _, value, ok := strings.Cut(key, ":"); ok { // the file may also be used by update
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
		return fmt.Errorf("%w: %w; AbuseIPDB does not accept this address, or had a report of this account in the last 15 minutes", errRejected, err)
	}
	return err
}

// aboutAddress reports whether a negative answer concerns the address of the report. Then
// the reports of other addresses must not wait.
func aboutAddress(reply []byte) bool {
	var answer struct {
		Errors []struct{ Source struct{ Parameter string } }
	}
	return json.Unmarshal(reply, &answer) == nil && len(answer.Errors) > 0 && answer.Errors[0].Source.Parameter == "ip"
}
