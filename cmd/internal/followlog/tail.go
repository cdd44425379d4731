// Package followlog follows the log of a mail server, and passes its sessions to the engine.
package followlog

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// patience is the number of calls to next before the tail changes to a new file.
	patience = 8
	// maxLine is the maximum length of a line in bytes. The rest of a longer line is skipped.
	maxLine = 64 << 10
	// headSize is the number of bytes at the start of a file that identify it. The inode alone is
	// not enough, because copytruncate keeps the inode.
	headSize = 256
)

// A Position is a position in a log. A Position is saved, so that a restart continues where the
// last run ended.
type Position struct {
	Inode  uint64
	Offset int64  // after the last complete line
	Head   string // hash of the first bytes
	Length int    // number of bytes in Head
	Last   string // hash of the bytes before Offset; see position
}

// PositionFile is the name of the file in the state directory that stores the position.
const PositionFile = "position"

func (p Position) String() string {
	return fmt.Sprintf("%d %d %d %s %s\n", p.Inode, p.Offset, p.Length, p.Head, cmp.Or(p.Last, "-"))
}

// ParsePosition parses the output of String.
func ParsePosition(s string) (p Position, err error) {
	n, err := fmt.Sscanf(s, "%d %d %d %s %s\n", &p.Inode, &p.Offset, &p.Length, &p.Head, &p.Last)
	if err == nil && (n != 5 || p.Offset < 0 || p.Length < 0 || p.Length > headSize) {
		err = errors.New("not a position")
	}
	if p.Last == "-" {
		p.Last = ""
	}
	return p, err
}

// Save saves the position in a state directory.
func (p Position) Save(dir string) error {
	f, err := os.CreateTemp(dir, PositionFile+"-*.new")
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, p.String())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, PositionFile))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// ReadPosition reads the saved position. If there is none, the error is fs.ErrNotExist.
func ReadPosition(dir string) (Position, error) {
	f, err := os.OpenFile(filepath.Join(dir, PositionFile), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return Position{}, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 200))
	if err != nil {
		return Position{}, err
	}
	return ParsePosition(string(data))
}

// A tail reads complete lines from a file that grows, and follows it through rotation.
type tail struct {
	name string
	file *os.File
	pos  Position
	buf  []byte // incomplete line
	skip bool   // the rest of the current line is skipped, because the line is too long
	rest bool   // file has been renamed, and is read to its end before the new file of that name
	// waits is the number of calls to next since the log's name started to refer to a new file. The
	// mail server keeps writing to the old file until it reopens its log.
	waits   int
	pending []*os.File // files that have had the log's name since, oldest first
	renamed int        // number of pending files that had been renamed before the start

	tooLong int
	lost    bool // the file with the saved position no longer exists
	changed int  // rotations and truncations
}

// open opens the log. With a saved position, it continues there, in the file that had the log's
// name at that time. Otherwise, it starts at the end of the log.
func (t *tail) open(saved *Position) error {
	f, err := openRegular(t.name)
	if err != nil && (saved == nil || !errors.Is(err, fs.ErrNotExist)) {
		return err
	}
	if saved == nil {
		t.use(f)
		end, err := f.Seek(0, io.SeekEnd)
		t.pos.Offset = end
		if err == nil && end > 0 {
			err = t.toLineStart()
		}
		return err
	}
	if f != nil {
		if saved.is(f) {
			return t.resume(f, saved)
		}
		if old := t.rotated(saved); old != nil {
			f.Close()
			return t.resumeRotated(old, saved)
		}
		t.lost = true
		t.use(f)
		return nil
	}
	if old := t.rotated(saved); old != nil {
		return t.resumeRotated(old, saved)
	}
	return err
}

// If the position is inside a line, toLineStart makes the tail skip the rest of that line.
func (t *tail) toLineStart() error {
	var last [1]byte
	if _, err := t.file.ReadAt(last[:], t.pos.Offset-1); err != nil {
		return err
	}
	t.skip = last[0] != '\n'
	return nil
}

func (t *tail) resume(f *os.File, saved *Position) error {
	t.use(f)
	if t.pos.Offset = saved.Offset; saved.Offset == 0 {
		return nil
	}
	return t.toLineStart() // the last run may have stopped inside a line that is too long
}

// resumeRotated continues in a file that was renamed. If the log was rotated more than once, the
// files that have had its name since then follow.
func (t *tail) resumeRotated(old *os.File, saved *Position) error {
	err := t.resume(old, saved)
	t.rest = true
	if err != nil {
		return err
	}
	first, _ := t.rotation(old)
	var files []rotation
	t.siblings(func(f *os.File) bool {
		one, ok := t.rotation(f)
		if ok = ok && one.compare(first) > 0; ok {
			files = append(files, one)
		}
		return ok
	})
	slices.SortFunc(files, rotation.compare)
	for _, one := range files {
		t.pending = append(t.pending, one.file)
	}
	t.renamed = len(files)
	return nil
}

// A rotation is a file that may have had the log's name.
type rotation struct {
	file *os.File
	mark string // digits that were added to the name
	at   time.Time
}

// rotation describes a file, and reports whether it may have had the log's name. Rotation adds a
// number or a date after the name or before its extension. Other logs may have names that begin like
// the log's name.
func (t *tail) rotation(f *os.File) (one rotation, ok bool) {
	info, err := f.Stat()
	if err != nil {
		return one, false
	}
	name, base := filepath.Base(f.Name()), filepath.Base(t.name)
	ext := filepath.Ext(base)
	mark, ok := strings.CutPrefix(name, base)
	if !ok {
		mark, _ = strings.CutPrefix(name, strings.TrimSuffix(base, ext))
		mark, ok = strings.CutSuffix(mark, ext)
	}
	ok = ok && len(mark) > 1 && strings.ContainsRune(".-_", rune(mark[0])) && strings.Trim(mark, ".-_0123456789") == ""
	return rotation{f, strings.Map(onlyDigits, mark), info.ModTime()}, ok
}

func onlyDigits(r rune) rune {
	if r < '0' || r > '9' {
		return -1
	}
	return r
}

// compare returns a positive number if a had the log's name later than b. Dates in the names decide,
// or else the times of the last lines. If these are equal, the lower number is later.
func (a rotation) compare(b rotation) int {
	if len(a.mark) == len(b.mark) && len(a.mark) >= len("20261129") {
		return strings.Compare(a.mark, b.mark)
	}
	x, _ := strconv.Atoi(a.mark)
	y, _ := strconv.Atoi(b.mark)
	return cmp.Or(a.at.Compare(b.at), y-x)
}

// use continues with a file, at its beginning.
func (t *tail) use(f *os.File) {
	if t.file != nil {
		t.file.Close()
	}
	t.file, t.buf, t.skip, t.rest, t.waits = f, t.buf[:0], false, false, 0
	t.pos = Position{Inode: inode(f)}
	t.identify()
}

// identify records the hash of the file's first bytes.
func (t *tail) identify() {
	if t.pos.Length == headSize {
		return
	}
	t.pos.Length, t.pos.Head = head(t.file, headSize)
}

// head returns the length and hash of a file's first bytes, at most n.
func head(f io.ReaderAt, n int) (int, string) {
	var b [headSize]byte
	n, _ = f.ReadAt(b[:n], 0)
	h := fnv.New64a()
	_, _ = h.Write(b[:n])
	return n, hex.EncodeToString(h.Sum(nil))
}

// position returns the current position, with Last.
func (t *tail) position() Position {
	p := t.pos
	if t.file != nil {
		p.Last = before(t.file, p.Offset)
	}
	return p
}

// before returns the hash of the bytes before an offset, at most headSize. If the file is shorter than
// the offset, the hash is that of fewer bytes.
func before(f *os.File, offset int64) string {
	from := max(offset-headSize, 0)
	_, sum := head(io.NewSectionReader(f, from, offset-from), headSize)
	return sum
}

// is reports whether f is the file to which the position refers, or a copy of it. An editor replaces
// the file by a copy, and copytruncate makes a copy before it empties the file.
func (p *Position) is(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Size() < p.Offset {
		return false
	}
	n, sum := head(f, p.Length)
	return n == p.Length && sum == p.Head && (inode(f) == p.Inode || n == headSize && before(f, p.Offset) == p.Last)
}

// maxRotated is the maximum number of files that are searched for a rotated file.
const maxRotated = 1000

// rotated finds the file with the saved position after it was renamed. The new name begins with the
// log's name.
func (t *tail) rotated(saved *Position) (found *os.File) {
	t.siblings(func(f *os.File) bool {
		if found != nil || !saved.is(f) {
			return false
		}
		found = f
		return true
	})
	return found
}

// siblings calls keep for the other files in the log's directory whose names begin like the log's
// name. If keep returns false, the file is closed.
func (t *tail) siblings(keep func(f *os.File) bool) {
	dir, err := os.Open(filepath.Dir(t.name))
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(maxRotated)
	base := filepath.Base(t.name)
	stem := strings.TrimSuffix(base, filepath.Ext(base))
	for _, name := range names {
		if name == base || !strings.HasPrefix(name, stem) {
			continue
		}
		f, err := openRegular(filepath.Join(filepath.Dir(t.name), name))
		if err == nil && !keep(f) {
			f.Close()
		}
	}
}

var errNotRegular = errors.New("not a regular file; use - for a pipe")

func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: %w", name, errNotRegular))
	}
	return f, nil
}

func inode(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}

// maxRead is the maximum number of bytes that read reads at a time, so that other work
// can be done in between.
const maxRead = 1 << 20

// read calls line for the complete lines that have been added, and reports whether there are
// more.
func (t *tail) read(line func([]byte)) (more bool, err error) {
	if t.file == nil {
		return false, nil
	}
	if t.truncated() {
		t.changed++
		t.pos.Offset, t.buf, t.skip = 0, t.buf[:0], false
		t.pos.Length = 0
	}
	t.identify()
	from := t.pos.Offset + int64(len(t.buf))
	chunk := make([]byte, 64<<10)
	for total := 0; total < maxRead; {
		n, err := t.file.ReadAt(chunk, from)
		from += int64(n)
		total += n
		if n > 0 {
			t.waits = 0
		}
		t.lines(chunk[:n], line)
		if errors.Is(err, io.EOF) || n == 0 {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// truncated reports whether the file has changed since it was read: it is shorter, or its
// first bytes differ.
func (t *tail) truncated() bool {
	info, err := t.file.Stat()
	if err != nil {
		return false
	}
	if info.Size() < t.pos.Offset+int64(len(t.buf)) {
		return true
	}
	n, sum := head(t.file, t.pos.Length)
	return n != t.pos.Length || sum != t.pos.Head
}

// lines passes on complete lines and keeps the rest.
func (t *tail) lines(chunk []byte, line func([]byte)) {
	for {
		i := bytes.IndexByte(chunk, '\n')
		if i < 0 {
			break
		}
		switch part := chunk[:i]; {
		case t.skip:
			t.pos.Offset += int64(len(t.buf) + i + 1)
		case len(t.buf) == 0:
			t.pos.Offset += int64(i + 1)
			line(bytes.TrimSuffix(part, []byte("\r")))
		default:
			t.buf = append(t.buf, part...)
			t.pos.Offset += int64(len(t.buf) + 1)
			line(bytes.TrimSuffix(t.buf, []byte("\r")))
		}
		t.buf, t.skip = t.buf[:0], false
		chunk = chunk[i+1:]
	}
	if t.skip {
		t.pos.Offset += int64(len(chunk))
		return
	}
	if t.buf = append(t.buf, chunk...); len(t.buf) > maxLine {
		t.tooLong++
		t.skip = true
		t.pos.Offset += int64(len(t.buf))
		t.buf = t.buf[:0]
	}
}

// maxPending is the maximum number of files that wait to be read. Further rotations are
// noticed later.
const maxPending = 16

// next continues with the next file that has had the log's name, once the old file has been read to
// its end. It reports whether there is such a file.
func (t *tail) next() (bool, error) {
	err := t.notice()
	if len(t.pending) == 0 && err == nil {
		return false, nil
	}
	if t.waits++; t.waits < patience && t.file != nil && !t.rest {
		return false, nil
	}
	if len(t.pending) == 0 {
		return false, err
	}
	t.changed++
	old, f := t.position(), t.pending[0]
	offset := int64(0)
	if t.file != nil && old.is(f) {
		offset = old.Offset
	} else if t.file != nil {
		offset = find(t.file, old.Offset, f)
	}
	t.use(f)
	t.pos.Offset = offset
	t.pending = t.pending[1:]
	if t.renamed > 0 {
		t.renamed--
		t.rest = true
	}
	return true, nil
}

// find returns the offset in f after the last lines that were read from the old file, or 0 if f does not
// contain them. For example, an administrator may have removed earlier lines (sed -i).
func find(old *os.File, offset int64, f *os.File) (found int64) {
	last := make([]byte, headSize) // fewer bytes may occur by chance
	if _, err := old.ReadAt(last, offset-headSize); err != nil {
		return 0
	}
	chunk := make([]byte, maxRead)
	for from := int64(0); ; {
		n, err := f.ReadAt(chunk, from)
		if i := bytes.LastIndex(chunk[:n], last); i >= 0 {
			found = from + int64(i+len(last))
		}
		if err != nil || n < len(chunk) {
			return found
		}
		from += int64(n - len(last)) // the lines may be in two chunks
	}
}

// notice opens the file that now has the log's name, if the file is new. The new file is opened
// early, because it may itself be renamed before the old file has been read.
func (t *tail) notice() error {
	info, err := os.Stat(t.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the rotation is between two steps: no file has the name
	}
	if err != nil {
		return err
	}
	latest, known := t.pos.Inode, t.file != nil && !t.rest
	if n := len(t.pending); n > 0 {
		latest, known = inode(t.pending[n-1]), true
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && known && uint64(st.Ino) == latest || len(t.pending) >= maxPending {
		return nil
	}
	f, err := openRegular(t.name)
	if err == nil {
		t.pending = append(t.pending, f)
	}
	return err
}
