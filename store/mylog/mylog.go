// Package mylog reads the history that a well-known Perl filter for OpenSMTPD
// leaves behind, so that its users can keep it. That filter writes one file for
// each session in which the client greeted (h.SESSION), and one for each in
// which it named a recipient (r.SESSION), as texts of Perl's Data::Dumper: the
// session's state and, for recipients, the list of all its events until then.
//
// The lists are complete down to the microsecond and are what smtpd said, taken
// apart into fields. So they are put together again into the lines of
// smtpd-filters(7): whoever handles smtpd's lines can judge old sessions like
// new ones. Nothing in a file is executed, and no password leaves this package.
package mylog

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
)

// maxFiles is how many files of one directory are read. Each costs about 150
// bytes of memory until the end.
const maxFiles = 1 << 20

// maxSkips is how many skipped files a Report names.
const maxSkips = 20

// A Report tells what was read.
type Report struct {
	Files          int       // h.* and r.* found
	Others         int       // files and the like with other names, which were left alone
	Sessions       int       // sessions visited; several files may tell of one
	StateOnly      int       // sessions of which only the state at a greeting is known
	Omitted        int       // events of these that are no lines; see Session
	Skipped        int       // files that could not be used
	Skips          []Skip    // the first 20 of them
	Oldest, Newest time.Time // of the sessions' events; zero if there are none
}

// A Skip is a file that could not be used, and why.
type Skip struct {
	Name   string
	Reason error
}

// Read calls visit for each SMTP session that the files in fsys and the
// directories in it tell of, in the order in which they ended. Where several
// files tell of one session, the one with the most events is taken: it contains
// the others. The Session is valid only during the call; an error of visit
// ends Read and is returned.
//
// Files are read twice, first to sort the sessions. After each, progress, if
// not nil, is told how many of these readings are done, and how many there are.
//
// A file that cannot be used is skipped and reported. The error tells of a
// directory that could not be read, or that has more than a million files.
func Read(fsys fs.FS, visit func(*Session) error, progress func(done, total int)) (Report, error) {
	r := reader{fsys: fsys, progress: progress}
	names, err := r.list()
	if err != nil {
		return r.report, err
	}
	r.report.Files, r.total = len(names), 2*len(names)
	entries := make([]entry, 0, len(names))
	for _, name := range names {
		s, err := r.read(name)
		if err != nil {
			r.skip(name, err)
			r.tell(2)
			continue
		}
		e := entry{name: name, id: s.ID, src: s.Src, end: s.End.UnixMicro(), events: s.Events}
		if !s.StateOnly {
			e.start = s.Start.UnixMicro()
		}
		entries = append(entries, e)
		r.tell(1)
	}
	for _, e := range merge(entries) {
		if s, err := r.read(e.name); err != nil || s.ID != e.id {
			r.skip(e.name, cmp.Or(err, errors.New("it changed while it was read")))
		} else {
			r.seen(&s)
			if err := visit(&s); err != nil {
				return r.report, err
			}
		}
		r.tell(e.files)
	}
	return r.report, nil
}

// An entry is what is remembered of a file.
type entry struct {
	name   string
	id     uint64
	src    netip.AddrPort
	start  int64 // microseconds; 0 if only the state is known
	end    int64 // microseconds
	events int
	files  int // of the session
}

// merge returns one entry for each session, in order of their ends.
func merge(entries []entry) []entry {
	// Ids begin anew with smtpd, so the source belongs to the key, and the
	// start. Files without one come first; their sessions may have others.
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.id, b.id), a.src.Compare(b.src), cmp.Compare(a.start, b.start),
			cmp.Compare(a.events, b.events), cmp.Compare(a.end, b.end), strings.Compare(a.name, b.name))
	})
	kept := entries[:0]
	for _, e := range entries {
		e.files = 1
		if n := len(kept) - 1; n >= 0 {
			last := &kept[n]
			if last.id == e.id && last.src == e.src &&
				(last.start == e.start || last.start == 0 && e.start <= last.end) {
				e.files += last.files
				*last = e
				continue
			}
		}
		kept = append(kept, e)
	}
	slices.SortFunc(kept, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.id, b.id), strings.Compare(a.name, b.name))
	})
	return kept
}

type reader struct {
	fsys        fs.FS
	progress    func(done, total int)
	done, total int
	report      Report
	text        bytes.Buffer // of a file
	lines       []byte       // of its session
}

// list returns the names of the filter's files.
func (r *reader) list() (names []string, err error) {
	for dirs := []string{"."}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if err := r.each(dir, func(d fs.DirEntry) error {
			name := path.Join(dir, d.Name())
			switch mine := strings.HasPrefix(d.Name(), "h.") || strings.HasPrefix(d.Name(), "r."); {
			case d.IsDir():
				dirs = append(dirs, name)
			case !mine:
				r.report.Others++
			case !d.Type().IsRegular():
				r.skip(name, errors.New("it is no regular file"))
			default:
				names = append(names, name)
			}
			if len(names)+len(dirs) > maxFiles {
				return fmt.Errorf("%s: more than %d files: move some elsewhere and read them by themselves", dir, maxFiles)
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// each calls visit for what is in a directory. It reads it in parts, because
// how large it is was never bounded.
func (r *reader) each(dir string, visit func(fs.DirEntry) error) error {
	f, err := r.fsys.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer f.Close()
	d, ok := f.(fs.ReadDirFile)
	if !ok {
		return fmt.Errorf("open directory: %s is none", dir)
	}
	for {
		list, err := d.ReadDir(1000)
		for _, e := range list {
			if err := visit(e); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
	}
}

// read reads a file. The Session is valid until the next call.
func (r *reader) read(name string) (Session, error) {
	f, err := r.fsys.Open(name)
	if err != nil {
		return Session{}, err
	}
	defer f.Close()
	r.text.Reset()
	if _, err := r.text.ReadFrom(io.LimitReader(f, maxFile+1)); err != nil {
		return Session{}, err
	}
	values, err := Parse(r.text.Bytes())
	if err != nil {
		return Session{}, err
	}
	s, err := decode(values, r.lines[:0])
	if err != nil {
		return Session{}, err
	}
	r.lines = s.lines
	return s, nil
}

func (r *reader) skip(name string, reason error) {
	r.report.Skipped++
	if len(r.report.Skips) < maxSkips {
		r.report.Skips = append(r.report.Skips, Skip{name, reason})
	}
}

func (r *reader) seen(s *Session) {
	p := &r.report
	p.Sessions++
	p.Omitted += s.Omitted
	if s.StateOnly {
		p.StateOnly++
	}
	if p.Oldest.IsZero() || s.Start.Before(p.Oldest) {
		p.Oldest = s.Start
	}
	if s.End.After(p.Newest) {
		p.Newest = s.End
	}
}

func (r *reader) tell(n int) {
	r.done += n
	if r.progress != nil {
		r.progress(r.done, r.total)
	}
}
