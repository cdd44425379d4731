//go:build linux

package main

// The driver runs a filter as a child process on a socket, as smtpd does.

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A child is a filter after the handshake.
type child struct {
	name       string
	cmd        *exec.Cmd
	conn       *os.File // socket that is both stdin and stdout, as under smtpd
	r          *bufio.Reader
	registered map[string]bool
	ready      time.Duration // time from exec to register|ready
	stderr     bytes.Buffer
}

// start starts a filter and performs the handshake.
func start(name string, args ...string) (*child, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), name)
	c := &child{name: name, conn: os.NewFile(uintptr(fds[0]), name), registered: map[string]bool{}}
	c.r = bufio.NewReaderSize(c.conn, 64<<10)
	c.cmd = exec.Command(args[0], args[1:]...)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs, theirs, &c.stderr
	began := time.Now()
	err = c.cmd.Start()
	theirs.Close() // otherwise, the test would not notice when the filter exits
	if err != nil {
		c.conn.Close()
		return nil, err
	}
	if _, err := io.WriteString(c.conn, "config|smtpd-version|7.9.0-portable\nconfig|protocol|0.7\nconfig|smtp-session-timeout|300\n"+
		"config|subsystem|smtp-in\nconfig|subsystem|smtp-out\nconfig|admd|mx.example.org\nconfig|ready\n"); err != nil {
		return nil, c.failed(err)
	}
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return nil, c.failed(err)
		}
		what := strings.TrimSuffix(strings.TrimPrefix(line, "register|"), "\n")
		if what == "ready" {
			c.ready = time.Since(began)
			return c, nil
		}
		c.registered[what] = true
	}
}

func (c *child) failed(err error) error {
	c.conn.Close()
	c.cmd.Process.Kill()
	return fmt.Errorf("%s: %w; %v; it said:\n%s", c.name, err, c.cmd.Wait(), c.stderr.String())
}

// stop closes the filter's input and waits for the filter to exit, as smtpd does.
func (c *child) stop() error {
	c.conn.Close()
	// Ignore errors from frameworks, which may treat the end of input as an error.
	if err := c.cmd.Wait(); err != nil && strings.HasPrefix(c.name, "scanwatch") {
		return fmt.Errorf("%s: %w; it said:\n%s", c.name, err, c.stderr.String())
	}
	return nil
}

// cpu returns the CPU time of all threads of the process, including ended threads.
func (c *child) cpu() time.Duration { return cpuOf(c.cmd.Process.Pid) }

func cpuOf(pid int) time.Duration {
	const schedClock = 2 // CPUCLOCK_SCHED in the kernel; combined with a process id to form the id of the process's clock
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// memory returns a memory field of /proc/PID/status, such as VmHWM, in bytes.
func (c *child) memory(key string) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// full plays the stream at full speed for at least the given time, and reads the answers at the
// same time. It returns the number of rounds played.
func (c *child) full(s *stream, atLeast time.Duration) (rounds int, took time.Duration, err error) {
	var want atomic.Int64 // expected answers; set before the last round, while answers are outstanding
	want.Store(math.MaxInt64)
	read := make(chan error, 1)
	go func() {
		for n := int64(0); len(s.cuts) > 0 && n < want.Load(); n++ {
			if _, err := c.r.ReadSlice('\n'); err != nil {
				read <- fmt.Errorf("after %d answers: %w", n, err)
				return
			}
		}
		read <- nil
	}()
	began := time.Now()
	var apart time.Duration // time that is not attributed to the filter
	for last := false; !last; {
		rounds++
		now := time.Now()
		s.again(rounds)
		apart += time.Since(now)
		if last = time.Since(began) >= atLeast; last {
			want.Store(int64(rounds) * int64(len(s.cuts)))
		}
		if _, err := c.conn.Write(s.data); err != nil {
			return 0, 0, c.failed(err)
		}
	}
	if err := <-read; err != nil {
		return 0, 0, c.failed(err)
	}
	c.drained()
	return rounds, time.Since(began) - apart, nil
}

// drained waits until the filter has read all of its input.
func (c *child) drained() {
	for {
		n, err := unix.IoctlGetInt(int(c.conn.Fd()), unix.TIOCOUTQ)
		if err != nil || n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// offered plays the stream at a fixed number of requests per second. It returns the response times,
// measured from the time at which each request was due. Each request is sent in one write together
// with the reports before it.
func (c *child) offered(s *stream, rate int) ([]time.Duration, error) {
	// Do all work on one thread, because switching between goroutines would cost as much as the
	// work that is measured. Threads can sleep with a precision of a few microseconds.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	fd := int(c.conn.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	defer unix.SetNonblock(fd, false)

	took := make([]time.Duration, len(s.cuts))
	due := func(i int) time.Duration { return time.Duration(i) * time.Second / time.Duration(rate) }
	var in []byte
	buf := make([]byte, 64<<10)
	sent, answered, done := 0, 0, 0
	began := time.Now()
	poll := []unix.PollFd{{Fd: int32(fd)}}
	stalled := 30 * time.Second
	for answered < len(s.cuts) {
		now := time.Since(began)
		for sent < len(s.cuts) && due(sent) <= now {
			end := s.cuts[sent]
			n, err := unix.Write(fd, s.data[done:end])
			if err == unix.EAGAIN {
				break
			} else if err != nil {
				return nil, c.failed(err)
			}
			if done += n; done == end {
				sent++
			}
		}
		wait := stalled
		poll[0].Events = unix.POLLIN
		if sent < len(s.cuts) {
			if wait = due(sent) - time.Since(began); wait <= 0 {
				wait = stalled
				poll[0].Events |= unix.POLLOUT
			}
		}
		ts := unix.NsecToTimespec(int64(wait))
		n, err := unix.Ppoll(poll, &ts, nil)
		if err == unix.EINTR {
			continue
		} else if err != nil {
			return nil, err
		}
		if n == 0 && wait == stalled {
			return nil, c.failed(fmt.Errorf("no answer for %v, %d of %d are missing", stalled, len(s.cuts)-answered, len(s.cuts)))
		}
		if poll[0].Revents&^unix.POLLOUT == 0 {
			continue
		}
		n, err = unix.Read(fd, buf)
		at := time.Since(began)
		if err == unix.EAGAIN {
			continue
		}
		if err != nil || n == 0 {
			return nil, c.failed(errors.Join(err, io.ErrUnexpectedEOF))
		}
		in = append(in, buf[:n]...)
		for {
			i := bytes.IndexByte(in, '\n')
			if i < 0 {
				break
			}
			// The answer has the form filter-result|SESSION|TOKEN|...
			fields := bytes.SplitN(in[:i], []byte{'|'}, 4)
			if len(fields) < 4 {
				return nil, c.failed(fmt.Errorf("answer %q", in[:i]))
			}
			token, err := strconv.ParseUint(string(fields[2]), 16, 64)
			if err != nil || token >= uint64(len(took)) {
				return nil, c.failed(fmt.Errorf("answer %q", in[:i]))
			}
			took[token] = at - due(int(token))
			answered++
			in = in[i+1:]
		}
	}
	if rest := s.data[done:]; len(rest) > 0 { // reports after the last request
		_ = unix.SetNonblock(fd, false)
		if _, err := c.conn.Write(rest); err != nil {
			return nil, c.failed(err)
		}
	}
	slices.Sort(took)
	return took, nil
}

// quantile returns the quantile q of sorted times.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// size returns the total size of the files in a directory.
func size(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}
