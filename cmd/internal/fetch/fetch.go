// Package fetch downloads lists and databases for `scanwatch update`.
//
// A list decides which mail is rejected, so a wrong list is worse than an old one. If there is any
// doubt about a new file, the previous file is kept. A complete new file is renamed to replace the
// old one, so readers always see a single version.
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

// A Feed is a file to fetch.
type Feed struct {
	Name    string // name of the table, or "asn" or "country"
	File    string
	URL     string        // %Y and %m are the year and the month
	Format  string        // format for package feed; feed.Database for a database
	Needs   Fields        // fields of a database
	Exempts bool          // the list exempts clients, and may contain this site's networks and local addresses
	KeyFile string        // file with the provider's key; "" means no key
	Header  string        // header that contains the key; "" if the key file names the header
	Least   time.Duration // minimum interval between requests
	Every   time.Duration // interval; 0 for DefaultEvery
}

// Fields lists the fields that a database must have.
type Fields struct{ ASN, Country bool }

// Limits of a request.
const (
	DefaultLeast   = 10 * time.Minute
	DefaultEvery   = 24 * time.Hour
	DefaultTimeout = time.Minute
)

// Options holds the inputs to Run.
type Options struct {
	Now    func() time.Time
	Own    []netip.Prefix // addresses and networks that no list may contain
	Names  []string       // names of this host, which no list may cover
	Early  bool           // send the request before the interval has elapsed, but not before Least
	Any    bool           // accept any number of entries
	DryRun bool           // do not replace the file, and save only the time of the request
	// Timeout is the maximum duration of a request; 0 for DefaultTimeout.
	Timeout time.Duration
	Roots   *x509.CertPool // certificate authorities; nil for the system's
	Agent   string         // name and version of the program
}

// An Outcome states how a feed's update ended.
type Outcome string

// The outcomes.
const (
	Updated   Outcome = "updated"
	Unchanged Outcome = "unchanged"
	Waiting   Outcome = "waiting" // the interval has not elapsed
	Kept      Outcome = "kept"    // the new file is doubtful
	Failed    Outcome = "failed"  // there is no new file
)

// A Result describes a feed's update. The numbers describe an updated feed's new file.
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
	Date     time.Time `json:"date,omitzero"`    // the file's date, if it has one
	Checked  time.Time `json:"checked,omitzero"` // time of the latest request that confirmed the file
	Next     time.Time `json:"next,omitzero"`    // time of the next request
	// AnySize is the earliest time at which Run would accept the doubtful file, with Early and Any
	// set.
	AnySize time.Time `json:"any_size,omitzero"`
}

// step is called before each change to a file. Tests replace step to end the process there.
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
	size bool // Options.Any overrides the doubt
}

func doubtf(format string, args ...any) error {
	return doubtError{error: fmt.Errorf(format, args...)}
}

// sizef returns a doubt that Options.Any overrides.
func sizef(format string, args ...any) error {
	return doubtError{error: fmt.Errorf(format, args...), size: true}
}

// errUnchanged is the error that request returns if the file has not changed.
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
	case f.url(m.Attempt): // the same URL in an earlier month
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
	// The attempt counts even if this process ends before the server answers.
	before := m
	m.Attempt, m.DryRun = now, o.DryRun
	if err := f.save(p, o, m); err != nil {
		return err
	}
	answer, err := f.request(ctx, o, r.URL, key, m.validatorsOf(old))
	if errors.As(err, new(unsentError)) { // the request was not sent
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

// replace uncompresses and checks the new content, and replaces the file with it.
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

// replaceFile writes FILE.new, and renames it to FILE.
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

// lockName is the name of the file whose lock excludes other updates in the directory.
const lockName = ".update.lock"

// readOld returns the file's content, or nil if there is no file.
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
