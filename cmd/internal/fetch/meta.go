package fetch

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/owner"
	"scanwatch/internal/text"
)

// meta is a feed's state, the content of FILE.meta.
type meta struct {
	URL        string    `json:"url"`
	Attempt    time.Time `json:"attempt,omitzero"`    // time of the last request
	Checked    time.Time `json:"checked,omitzero"`    // time of the last request that confirmed the file
	NotBefore  time.Time `json:"not_before,omitzero"` // from Retry-After
	DryRun     bool      `json:"dry_run,omitempty"`   // the last request was a dry run
	Failures   int       `json:"failures,omitempty"`  // consecutive requests that returned no file
	Error      string    `json:"error,omitempty"`     // error of the last request
	SHA256     string    `json:"sha256,omitempty"`    // hash of the file that the validators identify
	validators           // of the same file
}

const maxMeta = 64 << 10

// metaSuffix is the suffix of a state file.
const metaSuffix = ".meta"

// readMeta reads a feed's state. If the state is unreadable, the file is fetched again.
func readMeta(p *owner.Place, now time.Time) meta {
	var m meta
	file, err := p.OpenFile(p.Name+metaSuffix, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return m
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return m
	}
	if err := json.NewDecoder(io.LimitReader(file, maxMeta)).Decode(&m); err != nil {
		return meta{}
	}
	// The clock may have been wrong. A time in the future must not delay every request.
	if m.Attempt.After(now) {
		m.Attempt, m.NotBefore = time.Time{}, time.Time{} // NotBefore was computed with the same wrong clock
	}
	if m.NotBefore.After(now.Add(MaxRetryAfter)) {
		m.NotBefore = time.Time{}
	}
	if m.Checked.After(now) {
		m.Checked = now
	}
	m.Failures = min(max(m.Failures, 0), maxFailures)
	if strings.ContainsFunc(m.Error, func(r rune) bool { return !unicode.IsPrint(r) }) {
		m.Error = text.Escape(m.Error)
	}
	m.Error = text.Cut(m.Error, 500)
	return m
}

// A feed is stale if three intervals and at least three days have passed without a success.
const (
	staleIntervals = 3
	leastStale     = 3 * 24 * time.Hour
)

// Stale describes a feed whose last success is too old, or returns "".
func (f *Feed) Stale(now time.Time) string {
	p, err := owner.Resolve(f.File)
	if err != nil {
		return "" // the file's own error is reported elsewhere
	}
	defer p.Close()
	m := readMeta(p, now)
	switch {
	case m.URL != f.url(now) && m.URL != f.url(m.Attempt):
		return "" // never downloaded from this URL
	case m.Checked.IsZero() && m.Error != "":
		return fmt.Sprintf("%s %s: never downloaded: %s", f.Name, filepath.Base(f.File), m.Error)
	case m.Checked.IsZero() || now.Sub(m.Checked) <= max(staleIntervals*f.every(), leastStale):
		return ""
	}
	s := fmt.Sprintf("%s %s: no successful download since %s", f.Name, filepath.Base(f.File), m.Checked.UTC().Format(time.DateOnly))
	if m.Error == "" {
		return s + "; check the timer of scanwatch update"
	}
	return s + ": " + m.Error
}

// Checked returns the time of the latest success, or the zero time.
func (f *Feed) Checked(now time.Time) time.Time {
	p, err := owner.Resolve(f.File)
	if err != nil {
		return time.Time{}
	}
	defer p.Close()
	return readMeta(p, now).Checked
}

// save writes the state.
func (f *Feed) save(p *owner.Place, o Options, m meta) error {
	m.URL = f.url(o.Now())
	step("meta")
	return output.Replace(filepath.Join(p.Root.Name(), p.Name)+metaSuffix, 0o644, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(m)
	})
}

// maxFailures limits the back-off.
const maxFailures = 16

// record records a request's result. A doubted file does not count as a failure, because the server
// will probably offer the same file again.
func (m *meta) record(a answer, err error, now time.Time) {
	m.NotBefore = a.retryAfter
	switch {
	case err == nil, errors.As(err, new(doubtError)):
		m.Failures = 0
	case errors.Is(err, errUnchanged):
		m.Failures, m.Checked = 0, now
	default:
		m.Failures = min(m.Failures+1, maxFailures)
	}
}

// accept records that the response has become the file's content.
func (m *meta) accept(a answer) {
	m.Checked, m.validators, m.SHA256 = m.Attempt, a.validators, digest(a.content)
}

// validatorsOf returns the file's validators. If the file was changed or removed after it was
// fetched, the validators are zero.
func (m *meta) validatorsOf(old []byte) validators {
	if old == nil || digest(old) != m.SHA256 {
		return validators{}
	}
	return m.validators
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// next returns the time of the next request, one interval after the last request. The interval is
// shortened by a tenth, because cron(8) is inexact. After failures, the interval is shorter, and
// increases with each failure. The next request is never before the time that the server requested.
func (m *meta) next(f *Feed, early bool) time.Time {
	if m.Attempt.IsZero() {
		return m.NotBefore
	}
	least := max(f.Least, DefaultLeast)
	wait := max(f.every()*9/10, least)
	if m.Failures > 0 {
		wait = min(least<<(m.Failures-1), max(f.every(), least))
	}
	if early || m.DryRun && m.Failures == 0 {
		wait = least
	}
	next := m.Attempt.Add(wait)
	if m.NotBefore.After(next) {
		next = m.NotBefore
	}
	return next
}
