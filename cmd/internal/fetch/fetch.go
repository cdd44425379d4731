// Package fetch downloads lists and databases for `scanwatch update`.
//
// A list decides which mail is rejected, so that a wrong one is worse than an old one: the
// previous file remains if there is any doubt about the next one. A file is replaced by
// renaming a complete file, so that its readers always see one version.
package fetch

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"scanwatch/cmd/internal/owner"
	"scanwatch/filter/lookup/feed"
)

// A Feed is a file that is fetched.
type Feed struct {
	Name    string // of the table, or asn or country
	File    string
	URL     string        // %Y and %m are the year and the month
	Format  string        // for package feed; feed.Database for a database
	Needs   Fields        // fields of a database
	Exempts bool          // the list exempts clients, and may contain own and local addresses
	KeyFile string        // file with the key of the provider; empty without one
	Header  string        // header of the key; empty if the file has one
	Least   time.Duration // least interval of requests
	Every   time.Duration // interval; 0 for DefaultEvery
}

// Fields contains the fields that a database must have.
type Fields struct{ ASN, Country bool }

// The limits of a request.
const (
	DefaultLeast   = 10 * time.Minute
	DefaultEvery   = 24 * time.Hour
	DefaultTimeout = time.Minute
)

// Options are the options of Run.
type Options struct {
	Now    func() time.Time
	Own    []netip.Prefix // addresses and networks that no list may contain
	Names  []string       // names of this host, which no list may cover
	Early  bool           // request before the interval has elapsed, but not before Least
	Any    bool           // accept any number of entries
	DryRun bool           // do not replace the file, and only save the time of the request
	// Timeout is the longest duration of a request; 0 for DefaultTimeout.
	Timeout time.Duration
	Roots   *x509.CertPool // certificates of authorities; nil for the system certificates
	Agent   string         // name and version of the program
}

// An Outcome is the result of a feed.
type Outcome string

// The outcomes.
const (
	Updated   Outcome = "updated"
	Unchanged Outcome = "unchanged"
	Waiting   Outcome = "waiting" // the interval has not elapsed
	Kept      Outcome = "kept"    // the new file is doubtful
	Failed    Outcome = "failed"  // there is no new file
)

// A Result is the result of a feed. The numbers describe the new file of an updated
// feed.
type Result struct {
	Name     string    `json:"name"`
	File     string    `json:"file"`
	URL      string    `json:"url"`
	Outcome  Outcome   `json:"outcome"`
	Why      string    `json:"why,omitempty"`
	Entries  int       `json:"entries,omitempty"` // of a list
	Added    int       `json:"added,omitempty"`
	Removed  int       `json:"removed,omitempty"`
	Rejected int       `json:"rejected,omitempty"`
	Bytes    int       `json:"bytes,omitempty"`
	Date     time.Time `json:"date,omitzero"`    // of the file, if it has one
	Checked  time.Time `json:"checked,omitzero"` // of the latest request that confirmed the file
	Next     time.Time `json:"next,omitzero"`    // of the next request
	// AnySize is the time of the first request with Early and Any, if these would accept a
	// file that was kept.
	AnySize time.Time `json:"any_size,omitzero"`
}

// step is called before each change of a file. Tests replace it to end the process there.
var step = func(string) {}

// Run updates one feed.
func (f *Feed) Run(ctx context.Context, o Options) Result {
	r := Result{Name: f.Name, File: f.File, URL: f.url(o.Now())}
	err := f.run(ctx, o, &r)
	var doubt doubtError
	switch {
	case errors.As(err, &doubt):
		r.Outcome, r.Why = Kept, err.Error()
	case err != nil:
		r.Outcome, r.Why = Failed, err.Error()
	}
	return r
}

// A doubtError is a reason not to use a complete file.
type doubtError struct {
	error
	size bool // Options.Any accepts the file
}

func doubtf(format string, args ...any) error {
	return doubtError{error: fmt.Errorf(format, args...)}
}

// sizef returns a doubt that Options.Any overrides.
func sizef(format string, args ...any) error {
	return doubtError{error: fmt.Errorf(format, args...), size: true}
}

// errUnchanged is the error of request for a file that has not changed.
var errUnchanged = errors.New("unchanged")

func (f *Feed) run(ctx context.Context, o Options, r *Result) error {
	p, err := owner.Resolve(f.File)
	if errors.Is(err, fs.ErrNotExist) {
		return owner.Missing(filepath.Dir(f.File), 0o755, "_swupdate")
	} else if err != nil {
		return err
	}
	defer p.Close()
	unlock, err := (&owner.Place{Root: p.Root, Name: lockName}).Lock("another update may be running")
	if err != nil {
		return err
	}
	defer unlock()
	old, err := readOld(p)
	if err != nil {
		return err
	}
	now := o.Now()
	m := readMeta(p, now)
	switch m.URL {
	case r.URL:
	case f.url(m.Attempt): // the same feed in an earlier month
		m.validators, m.SHA256 = validators{}, ""
	default:
		m = meta{}
	}
	if next := m.next(f, o.Early); next.After(now) {
		r.Outcome, r.Next, r.Checked, r.Why = Waiting, next, m.Checked, m.Error
		return nil
	}
	key, err := f.key()
	if err != nil {
		return err
	}
	// The attempt counts even if this process ends before it has an answer.
	before := m
	m.Attempt, m.DryRun = now, o.DryRun
	if err := f.save(p, o, m); err != nil {
		return err
	}
	answer, err := f.request(ctx, o, r.URL, key, m.validatorsOf(old))
	if errors.As(err, new(unsentError)) { // the server has not seen a request
		m = before
		m.Error, r.Checked = err.Error(), m.Checked
		return errors.Join(err, f.save(p, o, m))
	}
	if err == nil {
		if err = f.replace(p, o, old, &answer, r); err == nil && !o.DryRun {
			m.accept(answer)
		}
	}
	m.record(answer, err, now)
	if errors.Is(err, errUnchanged) {
		r.Outcome, err = Unchanged, nil
	}
	m.Error = ""
	if err != nil {
		m.Error = err.Error()
	}
	r.Next, r.Checked = m.next(f, false), m.Checked
	if doubt := (doubtError{}); errors.As(err, &doubt) && doubt.size {
		r.AnySize = m.next(f, true)
	}
	return errors.Join(err, f.save(p, o, m))
}

// replace checks the new content, which it uncompresses, and replaces the file with it.
func (f *Feed) replace(p *owner.Place, o Options, old []byte, a *answer, r *Result) (err error) {
	if a.content, err = uncompressed(a.content); err == nil {
		err = f.check(o, old, a.content, r)
	}
	if err != nil {
		return Redacted(err, a.request) // the content may repeat the request
	}
	content := a.content
	r.Bytes, r.Outcome = len(content), Updated
	if string(content) == string(old) {
		r.Outcome = Unchanged
		return nil
	}
	if o.DryRun {
		return nil
	}
	return replaceFile(p, content)
}

// replaceFile writes FILE.new and renames it.
func replaceFile(p *owner.Place, content []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", p.Path(), err)
		}
	}()
	mode := fs.FileMode(0o644)
	if info, err := p.Regular(); err == nil {
		mode = info.Mode().Perm()
	}
	temp := p.Name + ".new"
	step("remove")
	if err := p.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	step("create")
	file, err := p.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			file.Close()
			_ = p.Remove(temp)
		}
	}()
	half := len(content) / 2
	for _, do := range []func() error{
		func() error { return file.Chmod(mode) },
		func() error { _, err := file.Write(content[:half]); return err },
		func() error { step("write"); _, err := file.Write(content[half:]); return err },
		file.Sync, file.Close,
		func() error { step("rename"); return p.Rename(temp, p.Name) },
		func() error { step("renamed"); return syncDir(p) },
	} {
		if err := do(); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(p *owner.Place) error {
	dir, err := p.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// lockName is the name of the file that excludes other updates of the directory.
const lockName = ".update.lock"

// readOld returns the content of the file, or nil without a file.
func readOld(p *owner.Place) ([]byte, error) {
	content, err := func() ([]byte, error) {
		info, err := p.Regular()
		switch {
		case err != nil:
			return nil, err
		case info.Size() > feed.MaxBytes:
			return nil, fmt.Errorf("larger than %d MiB", feed.MaxBytes>>20)
		}
		file, err := p.OpenFile(p.Name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		return io.ReadAll(io.LimitReader(file, feed.MaxBytes))
	}()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", p.Path(), err)
	}
	return content, nil
}
