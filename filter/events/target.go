package events

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// What a path can be.
const (
	kindFIFO     = "fifo"
	kindStream   = "stream"   // Unix socket
	kindDatagram = "datagram" // Unix socket
	kindFile     = "file"
)

// How much is written in one call, always of whole lines. A FIFO takes up to
// PIPE_BUF (4096 on Linux) bytes at once or not at all, so that one reader after
// another begins with a whole line. A longer line goes in a call of its own.
const (
	chunkFIFO     = 4096
	chunkStream   = 64 << 10
	chunkDatagram = 1 // a line to a datagram
	chunkFile     = 64 << 10
)

// sendBuffer is what a datagram socket is to hold, in bytes.
const sendBuffer = 256 << 10

var (
	// errReopen is no failure: the target is to be opened anew.
	errReopen = errors.New("open again")

	errKind    = errors.New("is neither a FIFO, nor a Unix socket, nor a regular file")
	errSymlink = errors.New("is a symbolic link, which is not followed")
	errStalled = errors.New("the reader does not read")
)

// A target is what is written to. Write gives up after the patience that it
// was opened with: it then returns how far it came and os.ErrDeadlineExceeded.
type target struct {
	io.WriteCloser
	kind  string
	chunk int
}

// openTarget looks at what path is and opens it. A missing file is made, unless
// something else has been there before: the one who made that would find its
// place taken when it comes back.
func openTarget(path, before string, maxFile int64, patience time.Duration) (*target, error) {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && (before == "" || before == kindFile):
		return openFile(path, maxFile)
	case err != nil:
		return nil, err
	}
	switch mode := fi.Mode(); {
	case mode.IsRegular():
		return openFile(path, maxFile)
	case mode&fs.ModeNamedPipe != 0:
		return openFIFO(path, patience)
	case mode&fs.ModeSocket != 0:
		return openSocket(path, patience)
	case mode&fs.ModeSymlink != 0:
		return nil, &fs.PathError{Op: "open", Path: path, Err: errSymlink}
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: errKind}
}

func openFIFO(path string, patience time.Duration) (*target, error) {
	// Without O_NONBLOCK the open would wait for a reader. It also makes sure
	// that nothing happens to a device that has taken the place meanwhile.
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && fi.Mode()&fs.ModeNamedPipe == 0 {
		err = errReopen
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &target{kind: kindFIFO, chunk: chunkFIFO, WriteCloser: &patient{f, patience}}, nil
}

func openSocket(path string, patience time.Duration) (*target, error) {
	name := path
	if strings.HasPrefix(name, "@") {
		name = "./" + name // net takes @ for Linux's names outside the file system
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	if err == nil {
		return &target{kind: kindStream, chunk: chunkStream, WriteCloser: &patient{conn, patience}}, nil
	}
	if !errors.Is(err, syscall.EPROTOTYPE) {
		return nil, err
	}
	conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	// The BSDs begin with a few kilobytes. Where this fails, the write of a
	// longer line does, and that is counted.
	_ = conn.SetWriteBuffer(sendBuffer)
	return &target{kind: kindDatagram, chunk: chunkDatagram, WriteCloser: &patient{conn, patience}}, nil
}

// patient writes to what may be full, but does not wait for ever.
type patient struct {
	io interface {
		io.WriteCloser
		SetWriteDeadline(time.Time) error
	}
	patience time.Duration
}

func (p *patient) Close() error { return p.io.Close() }

func (p *patient) Write(b []byte) (int, error) {
	if err := p.io.SetWriteDeadline(time.Now().Add(p.patience)); err != nil {
		return 0, err
	}
	return p.io.Write(b)
}

// file is a regular file with a largest size.
type file struct {
	*os.File
	path string
	self fs.FileInfo
	max  int64
}

func openFile(path string, max int64) (*target, error) {
	// O_NONBLOCK in case a FIFO has taken the place meanwhile.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errReopen
	}
	if err == nil {
		err = endLine(f, fi.Size())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &target{
		kind:        kindFile,
		chunk:       int(min(chunkFile, max)),
		WriteCloser: &file{File: f, path: path, self: fi, max: max},
	}, nil
}

// endLine ends what a power failure or another program has left as the last line.
func endLine(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], size-1); err != nil {
		return err
	}
	if last[0] == '\n' {
		return nil
	}
	_, err := f.Write([]byte{'\n'})
	return err
}

// Write appends p, which holds whole lines: all of them, or the first few and an
// error. It returns errReopen if the file has been moved away, or was just now
// because it is full. The look at the directory is cheap beside the write.
func (f *file) Write(p []byte) (int, error) {
	fi, err := os.Lstat(f.path)
	if err != nil || !os.SameFile(fi, f.self) {
		return 0, errReopen
	}
	size := fi.Size()
	if size > 0 && size+int64(len(p)) > f.max {
		if err := os.Rename(f.path, f.path+".1"); err != nil {
			return 0, fmt.Errorf("begin a new file: %w", err)
		}
		return 0, errReopen
	}
	n, err := f.File.Write(p)
	if err != nil {
		whole := bytes.LastIndexByte(p[:n], '\n') + 1
		if whole < n {
			f.takeBack(size, whole, n)
		}
		return whole, err
	}
	return n, nil
}

// takeBack removes a broken last line, which works on a full disk too. It leaves
// a file alone that somebody else has written to; endLine sees to that one.
func (f *file) takeBack(size int64, whole, n int) {
	if fi, err := f.Stat(); err == nil && fi.Size() == size+int64(n) {
		_ = f.Truncate(size + int64(whole))
	}
}

// hints tells for a cause what the operator can do. The first that fits counts.
var hints = [...]struct {
	cause error
	hint  string
}{
	{errSymlink, "name the file itself"},
	{errKind, "name a FIFO, a Unix socket or a file"},
	{errStalled, "see why the program that reads it hangs"},
	{syscall.ENXIO, "start the program that reads it"},
	{syscall.EPIPE, "start the program that reads it"},
	{syscall.ECONNREFUSED, "start the program that listens on it"},
	{syscall.ECONNRESET, "start the program that listens on it"},
	{syscall.EAGAIN, "see why the program that listens on it accepts no connection"},
	{syscall.EPROTOTYPE, "listen on a stream or datagram socket"},
	{syscall.ENOSPC, "make room on the disk"},
	{syscall.EDQUOT, "make room on the disk"},
	{syscall.EFBIG, "raise the limit of the size of files"},
	{fs.ErrPermission, "let the user of the filter write to it, and to its directory"},
	{fs.ErrNotExist, "make its directory, or start the program that listens on it"},
}

func hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.cause) {
			return h.hint
		}
	}
	return "see what is at the path"
}
