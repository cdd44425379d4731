// Teefilter runs between smtpd and a filter. It registers more phases for the filter, so that smtpd
// also sends requests in these phases. Otherwise, it forwards both streams unchanged.
//
//	teefilter [-phases PHASE,...] [-tee DIR] [-times FILE] [-apart DURATION] FILTER [ARGUMENT ...]
//
// Teefilter ends when the filter ends. Its exit status is the filter's status, or 128 plus the
// signal number. With -tee, it appends the filter's input to DIR/stream.in before forwarding the
// input. It appends the output, with the added registrations, to DIR/stream.out. With -times, it
// appends a line to FILE for each answer, with the phase and the response time in microseconds.
// With -apart, each connection advances the timestamps by another DURATION. For the filter, which
// has no other clock, hours then pass.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// phases lists the default phases. It omits auth and data-line, because their requests contain
// passwords and messages. smtpd never sends wiz or help.
const phases = "connect,helo,ehlo,starttls,mail-from,rcpt-to,data,commit,rset,noop,quit"

func main() {
	list := flag.String("phases", phases, "`phases` to register, separated by commas")
	tee := flag.String("tee", "", "`directory` for both streams")
	times := flag.String("times", "", "`file` for the response time of each answer")
	apart := flag.Duration("apart", 0, "`time` to add before each connection")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "teefilter: no filter given")
		os.Exit(2)
	}
	status, err := run(flag.Args(), os.Stdin, os.Stdout, *tee, *times, *apart,
		strings.FieldsFunc(*list, func(r rune) bool { return r == ',' }))
	if err != nil {
		fmt.Fprintln(os.Stderr, "teefilter:", err)
		os.Exit(1)
	}
	os.Exit(status)
}

// run forwards both streams until the filter ends, and returns its status.
func run(command []string, stdin io.Reader, stdout io.Writer, tee, times string, apart time.Duration, phases []string) (int, error) {
	// smtpd uses one socket for standard input and output. Two pipes also conform to
	// smtpd-filters(7).
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	toFilter, toServer := io.Writer(in), stdout
	if apart != 0 {
		toFilter = &calendar{to: toFilter, apart: apart}
	}
	if tee != "" {
		for _, t := range []struct {
			name string
			to   *io.Writer
		}{{"stream.in", &toFilter}, {"stream.out", &toServer}} {
			f, err := os.OpenFile(filepath.Join(tee, t.name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			*t.to = io.MultiWriter(f, *t.to)
		}
	}
	if times != "" {
		f, err := os.OpenFile(times, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		w := &stopwatch{out: f, asked: map[string]request{}}
		toFilter, toServer = &lines{to: toFilter, each: w.request}, &lines{to: toServer, each: w.answer}
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		// On error, the filter has ended or is ending, and its status is the result.
		_, _ = io.Copy(toFilter, stdin)
		_ = in.Close()
	}()
	if err := inject(toServer, out, phases); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// inject copies src to dst, and adds registrations before the last line of the handshake. It does
// not repeat registrations that the filter already has.
func inject(dst io.Writer, src io.Reader, phases []string) error {
	r := bufio.NewReader(src)
	own := map[string]bool{}
	for {
		line, err := r.ReadString('\n')
		if line == "register|ready\n" {
			more := ""
			for _, phase := range phases {
				if !own[phase] {
					more += "register|filter|smtp-in|" + phase + "\n"
				}
			}
			if _, err := io.WriteString(dst, more+line); err != nil {
				return err
			}
			_, err := io.Copy(dst, r)
			return err
		}
		if phase, ok := strings.CutPrefix(line, "register|filter|smtp-in|"); ok {
			own[strings.TrimSuffix(phase, "\n")] = true
		}
		if _, err := io.WriteString(dst, line); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// A stopwatch measures a filter's response times.
type stopwatch struct {
	out io.Writer

	mu    sync.Mutex
	asked map[string]request // by session and token
}

type request struct {
	phase string
	at    time.Time
}

// request is called for each line before the filter receives it.
func (w *stopwatch) request(line string) {
	f := strings.SplitN(line, "|", 8)
	if f[0] != "filter" || len(f) < 7 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[f[5]+"|"+f[6]] = request{f[4], time.Now()}
}

// answer is called for each of the filter's lines before smtpd receives it.
func (w *stopwatch) answer(line string) {
	f := strings.SplitN(line, "|", 4)
	if f[0] != "filter-result" || len(f) < 4 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	key := f[1] + "|" + f[2]
	if r, ok := w.asked[key]; ok {
		delete(w.asked, key)
		fmt.Fprintln(w.out, r.phase, time.Since(r.at).Microseconds())
	}
}

// A calendar adds time to the timestamps. Each connection increases the added time.
type calendar struct {
	to           io.Writer
	apart, added time.Duration
	part         []byte
}

func (c *calendar) Write(p []byte) (int, error) {
	c.part = append(c.part, p...)
	end := bytes.LastIndexByte(c.part, '\n') + 1
	var out []byte
	for line := range bytes.Lines(c.part[:end]) {
		out = append(out, c.later(line)...)
	}
	c.part = append(c.part[:0], c.part[end:]...)
	if _, err := c.to.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// later returns the line with a later timestamp. A line has the form
// KIND|VERSION|SECONDS.MICROSECONDS|...
func (c *calendar) later(line []byte) []byte {
	f := bytes.SplitN(line, []byte("|"), 6)
	if len(f) < 6 {
		return line
	}
	seconds, micros, _ := bytes.Cut(f[2], []byte("."))
	n, err := strconv.ParseInt(string(seconds), 10, 64)
	if err != nil {
		return line
	}
	if string(f[4]) == "link-connect" {
		c.added += c.apart
	}
	f[2] = fmt.Appendf(nil, "%d.%s", n+int64(c.added/time.Second), micros)
	return bytes.Join(f, []byte("|"))
}

// lines is a writer that calls a function for each whole line before it writes the line.
type lines struct {
	to   io.Writer
	each func(string)
	part []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.part = append(l.part, p...)
	rest := l.part
	for {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			break
		}
		l.each(string(line))
		rest = after
	}
	l.part = append(l.part[:0], rest...)
	return l.to.Write(p)
}
