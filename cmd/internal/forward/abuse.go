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
	last     time.Time
	evidence []string // tokens, with any confidence
	certain  bool     // an offence with high confidence
	banned   bool     // by a rule that was enforced
	sessions map[uint64]bool
}

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
}

// reporterFile is the content of the file of a reporter.
type reporterFile struct {
	Reported map[netip.Addr]time.Time `json:"reported"`
	Exempt   map[netip.Addr]time.Time `json:"exempt"`
	Overflow time.Time                `json:"overflow,omitzero"`
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
	for a, at := range f.Exempt {
		r.exempt[a] = earlier(at, now) // the clock may have been wrong
	}
	maps.Copy(r.reported, f.Reported)
	r.overflow = earlier(f.Overflow, now)
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
	data, err := json.Marshal(reporterFile{r.reported, r.exempt, r.overflow})
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
	return r.save()
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
		if len(r.suspects) >= maxSuspects {
			return
		}
		s = &suspect{sessions: map[uint64]bool{}}
		r.suspects[src] = s
	}
	s.last = later(s.last, e.Time)
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

// miss and gap do nothing: a missing report does no harm.
func (r *reporter) miss(uint64) {}
func (r *reporter) gap()        {}

// due returns the hosts to report, and drops old evidence. Reports of the addresses in
// queued wait already.
func (r *reporter) due(now time.Time, queued map[string]bool) (due []report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dropBefore(r.exempt, now.Add(-sparedAfter))
	dropBefore(r.reported, now.Add(-reportAgain))
	maps.DeleteFunc(r.reported, func(_ netip.Addr, at time.Time) bool { return at.After(now.Add(reportAgain)) }) // the clock was wrong
	if now.Sub(r.overflow) < sparedAfter {
		return nil // the host could be one of those without room
	}
	for src, s := range r.suspects {
		if s.last.Before(now.Add(-suspectAfter)) {
			delete(r.suspects, src)
			continue
		}
		_, again := r.reported[src]
		_, spared := r.exempt[src]
		if !s.certain && !s.banned || again || spared || queued[src.String()] || len(r.reported)+len(due) >= maxReported {
			continue
		}
		categories, words := export.Offences(s.evidence, s.banned)
		if len(words) == 0 {
			continue
		}
		due = append(due, report{IP: src, Categories: categories, Time: s.last.UTC(),
			Comment: text.Plural(len(s.sessions), "SMTP session") + ": " + strings.Join(words, ", ")})
	}
	slices.SortFunc(due, func(a, b report) int { return a.IP.Compare(b.IP) })
	return due
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
		return fmt.Errorf("%w: read the queue: %w", errRejected, err)
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
	return a.post(req)
}
