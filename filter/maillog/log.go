package maillog

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
)

// A Log is a mail log: a file or standard input.
type Log struct {
	Name string

	index int // index of the log in the arguments of Open
	size  int64
	read  atomic.Int64 // number of compressed bytes read

	file   io.ReadCloser
	in     *bufio.Reader // nil until the first line is read
	export *export       // nil unless the file is in the export format of the journal
	clock  clock
	first  int64 // time of the first line
	at     int64 // time of the latest line; before that, time of the first line

	raw       []byte // latest line
	lineBytes int
	cut       bool // the compressed file is incomplete
}

// lineLimit is the maximum length of a line, in bytes.
const lineLimit = 64 << 10

var errTooLong = errors.New("line too long")

// Open opens the named files. Open detects their formats and the times of their first lines. The
// name "-" represents standard input. If the times have no year, Open assumes the latest year that
// is possible. Open infers this year from the modification time of the file, or from the current
// time for standard input. The caller must call Read or CloseAll.
func Open(names []string, stdin io.Reader, now time.Time, zone *time.Location) (logs []*Log, err error) {
	for i, name := range names {
		l := &Log{Name: name, index: i, file: io.NopCloser(stdin), clock: clock{zone: zone, newest: now.UnixMicro()}}
		if name != "-" {
			err = l.openFile(now)
		}
		logs = append(logs, l)
		if err != nil {
			return nil, errors.Join(err, CloseAll(logs))
		}
	}
	return logs, nil
}

func (l *Log) openFile(now time.Time) error {
	file, err := os.OpenFile(l.Name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // do not block on a FIFO
	if err != nil {
		return err
	}
	l.file = file
	if err := l.regular(file, now); err != nil {
		return err
	}
	if err = l.survey(); err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", l.Name, err)
	}
	return nil
}

// regular returns an error if the file is not regular. regular also stores the size and the
// modification time of the file.
func (l *Log) regular(file *os.File, now time.Time) error {
	info, err := file.Stat()
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("read %s: not a regular file; use - for a pipe", l.Name)
	}
	l.size = info.Size()
	if info.ModTime().Before(now) {
		l.clock.newest = info.ModTime().UnixMicro()
	}
	return nil
}

// Close closes the file.
func (l *Log) Close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file, l.in = nil, nil
	return err
}

// CloseAll closes logs that were not passed to Read.
func CloseAll(logs []*Log) (err error) {
	for _, l := range logs {
		err = errors.Join(err, l.Close())
	}
	return err
}

// These are the magic numbers of compressed files.
var (
	magicGzip  = []byte{0x1f, 0x8b}
	magicBzip2 = []byte("BZh")
	magicXZ    = []byte("\xfd7zXZ\x00")
	magicZstd  = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// Compressed reports whether a file that begins with head is compressed. head needs at least the
// first 6 bytes of a longer file.
func Compressed(head []byte) bool {
	return slices.ContainsFunc([][]byte{magicGzip, magicBzip2, magicXZ, magicZstd}, func(magic []byte) bool { return bytes.HasPrefix(head, magic) })
}

// begin detects the format of the log.
func (l *Log) begin() error {
	plain := bufio.NewReaderSize(&counter{l.file, &l.read}, lineLimit)
	head, _ := plain.Peek(6) // a file of less than 6 bytes has no magic number
	switch {
	case bytes.HasPrefix(head, magicGzip):
		z, err := gzip.NewReader(plain)
		if err != nil {
			return err
		}
		if t := z.ModTime; !t.IsZero() {
			l.clock.newest = min(l.clock.newest, t.UnixMicro())
		}
		l.in = bufio.NewReaderSize(z, lineLimit)
	case bytes.HasPrefix(head, magicBzip2):
		l.in = bufio.NewReaderSize(bzip2.NewReader(plain), lineLimit)
	case bytes.HasPrefix(head, magicXZ):
		return unsupported(l.Name, "xz")
	case bytes.HasPrefix(head, magicZstd):
		z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
		l.in = bufio.NewReaderSize(z, lineLimit)
	default:
		l.in = plain
	}
	if head, _ = l.in.Peek(len(exportStart)); bytes.HasPrefix(head, []byte(exportStart)) || bytes.HasPrefix(head, []byte("__CURSOR=")) {
		l.export = new(export)
	}
	return nil
}

func unsupported(name, program string) error {
	return fmt.Errorf("compressed with %s; pipe the output of %s -dc %s to the same command, with - as the file", program, program, name)
}

// maxWindow is the maximum memory in bytes for reading a file compressed with zstd. By default,
// zstd(1) has the same limit.
const maxWindow = 128 << 20

// A counter counts the bytes that are read through it.
type counter struct {
	io.Reader
	n *atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// survey finds the time of the first line. If the log has RFC 3164 times, survey reads it
// completely to infer the year. survey determines the year of the last line, and subtracts one for
// each change from December to January.
func (l *Log) survey() error {
	err := l.scan()
	l.read.Store(0)
	l.first, l.in, l.export, l.clock.month, l.clock.day, l.clock.hour = l.at, nil, nil, 0, 0, [9]byte{}
	return err
}

func (l *Log) scan() error {
	if err := l.begin(); err != nil {
		return err
	}
	var last []byte // first 15 bytes of the latest line with a time
	years, first := 0, []byte(nil)
	month, day := 0, 0
	for {
		line, err := l.next()
		switch {
		case errors.Is(err, io.EOF):
			if first != nil {
				hour, within, _ := clockTime(last[7:])
				l.clock.year = yearBefore(month, day, hour, within, l.clock.newest, l.clock.zone) - years
				c := l.clock
				c.month = 0
				l.at, _, _, _ = c.cut3164(append(first, ' '))
			}
			return nil
		case errors.Is(err, errTooLong):
			continue
		case errors.Is(err, errYear):
			l.clock.year = 0 // the year is determined at the end of the log
		case err != nil:
			return err
		}
		raw, _ := cutPriority(l.raw)
		if m, d, ok := monthDay(raw); ok && len(raw) > 15 && l.export == nil {
			if _, _, ok := clockTime(raw[7:]); !ok {
				continue
			}
			if first == nil {
				first = bytes.Clone(raw[:15])
			}
			last = append(last[:0], raw[:15]...)
			years += rollover(month, day, m, d)
			month, day = m, d
		} else if line.ok && first == nil {
			return nil // the line has a year, so l.at is correct
		}
	}
}

// next returns the next line, or io.EOF at the end of the log.
func (l *Log) next() (line line, err error) {
	if l.in == nil {
		if err := l.begin(); err != nil {
			return line, err
		}
	}
	l.lineBytes = 0
	if l.export != nil {
		line, err = l.export.next(l)
	} else {
		if err = l.readLine(); err != nil {
			return line, err
		}
		line, err = parseLine(l.raw, &l.clock)
	}
	if err == nil && line.ok {
		l.at = line.at
	}
	return line, err
}

// readLine reads a line into raw, and skips lines that are too long. If a compressed file is
// incomplete, the log ends after the last complete line.
func (l *Log) readLine() error {
	s, err := l.in.ReadSlice('\n')
	n, long := len(s), false
	for errors.Is(err, bufio.ErrBufferFull) {
		long = true
		s, err = l.in.ReadSlice('\n')
		n += len(s)
	}
	l.lineBytes += n
	if l.cut = errors.Is(err, io.ErrUnexpectedEOF); l.cut {
		return io.EOF
	}
	if err != nil && (!errors.Is(err, io.EOF) || n == 0) {
		return err
	}
	if long {
		return errTooLong
	}
	l.raw = bytes.TrimSuffix(bytes.TrimSuffix(s, []byte("\n")), []byte("\r"))
	return nil
}
