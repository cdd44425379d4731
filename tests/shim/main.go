// Shim stands between smtpd and a filter. It passes on both streams as they
// are, except that it registers further phases in the filter's name, so that
// smtpd asks in all of them:
//
//	shim [-phases PHASE,...] [-tee DIR] [-times FILE] FILTER [ARGUMENT ...]
//
// It ends when the filter ends, with its exit status, or with 128 and the
// signal's number. With -tee, what smtpd says is appended to DIR/stream.in and
// what the filter says, additions included, to DIR/stream.out, both before it
// is passed on. With -times, a line with the phase and the microseconds that the
// filter took is appended to FILE for each answer.
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
	"strings"
	"sync"
	"syscall"
	"time"
)

// Phases are those registered unless others are named. Two are left out:
// auth carries passwords and data-line the text of messages; and wiz and help
// are never asked.
const phases = "connect,helo,ehlo,starttls,mail-from,rcpt-to,data,commit,rset,noop,quit"

func main() {
	list := flag.String("phases", phases, "`phases` to register, separated by commas")
	tee := flag.String("tee", "", "`folder` to keep both streams in")
	times := flag.String("times", "", "`file` for how long each answer took")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "shim: which filter?")
		os.Exit(2)
	}
	status, err := run(flag.Args(), os.Stdin, os.Stdout, *tee, *times,
		strings.FieldsFunc(*list, func(r rune) bool { return r == ',' }))
	if err != nil {
		fmt.Fprintln(os.Stderr, "shim:", err)
		os.Exit(1)
	}
	os.Exit(status)
}

// run passes everything on until the filter ends, and returns its status.
func run(command []string, stdin io.Reader, stdout io.Writer, tee, times string, phases []string) (int, error) {
	// Standard input of a filter is one socket with its standard output; what
	// the filter gets from us is two pipes, which smtpd-filters(7) does not
	// forbid.
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
		// An error means that the filter has gone, or is about to: its end
		// is what counts.
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

// inject copies src to dst, with the registrations put before the line that
// ends the filter's own. Phases the filter has registered are not repeated.
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

// A stopwatch measures the time from a request to its answer.
type stopwatch struct {
	out io.Writer

	mu    sync.Mutex
	asked map[string]request // by session and token
}

type request struct {
	phase string
	at    time.Time
}

// request sees a line on its way to the filter, before it goes on.
func (w *stopwatch) request(line string) {
	f := strings.SplitN(line, "|", 8)
	if f[0] != "filter" || len(f) < 7 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[f[5]+"|"+f[6]] = request{f[4], time.Now()}
}

// answer sees a line of the filter, before it goes on.
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

// lines shows whole lines to a function before it writes them.
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
