package forward

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	file string // with the times of reports

	mu       sync.Mutex
	suspects map[netip.Addr]*suspect
	exempt   map[netip.Addr]time.Time // hosts that send bounces or are exempt
	reported map[netip.Addr]time.Time
	overflow time.Time // latest time at which exempt had no room
}

func newReporter(dir string) *reporter {
	return &reporter{file: filepath.Join(dir, "reported"), suspects: map[netip.Addr]*suspect{}, exempt: map[netip.Addr]time.Time{}, reported: map[netip.Addr]time.Time{}}
}

// load reads the times of reports by earlier processes.
func (r *reporter) load() error {
	data, err := readFile(r.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r.reported)
	}
	if err != nil {
		r.reported = map[netip.Addr]time.Time{}
		return fmt.Errorf("read %s: %w", r.file, err)
	}
	return nil
}

// save writes the times of reports.
func (r *reporter) save() error {
	return output.Replace(r.file, 0o600, func(w io.Writer) error { return json.NewEncoder(w).Encode(r.reported) })
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
		if _, known := r.exempt[src]; !known && len(r.exempt) >= maxSuspects {
			r.overflow = e.Time
			return
		}
		r.exempt[src] = later(r.exempt[src], e.Time)
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

// miss and gap do nothing: a missing report does no harm.
func (r *reporter) miss(uint64) {}
func (r *reporter) gap()        {}

// due returns the hosts to report, and drops old evidence.
func (r *reporter) due(now time.Time) (due []report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dropBefore(r.exempt, now.Add(-sparedAfter))
	dropBefore(r.reported, now.Add(-reportAgain))
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
		if !s.certain && !s.banned || again || spared || len(r.reported)+len(due) >= maxReported {
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

// done records that a host was reported or must not be.
func (r *reporter) done(src netip.Addr, now time.Time, spared bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.suspects, src)
	if spared {
		r.exempt[src] = now
		return
	}
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
