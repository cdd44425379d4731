package control

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"scanwatch/cmd/internal/owner"
)

// frontEndFile is the name of a file in the state directory. The running front end holds a flock(2)
// on the file, and writes its name and process ID to it. The lock ends with the process, but the
// text remains.
const frontEndFile = "front-end"

// A FrontEnd identifies the latest front end of a state directory: the process that recorded a mail
// server's sessions there. The zero value means that there has been none, for example because all
// records were imported.
type FrontEnd struct {
	Name string // smtpd, milter, or the kind of a followed log
	PID  int
}

// frontEnds maps each front end's name to the command line that starts it, and to a remedy if it is
// not running. The remedy is a command or a question. Any other name is the kind of log that
// scanwatch follow reads.
var frontEnds = map[string]struct{ program, remedy string }{
	"":       {"the front end", "none has used this directory: does smtpd.conf name the filter, or does the service of another front end use another directory?"},
	"smtpd":  {"filter-scanwatch", "is smtpd up, and does smtpd.conf name the filter?"},
	"milter": {"milter-scanwatch", "start its service, see milter-scanwatch(8)"},
}

// Program returns the command line that starts the front end.
func (f FrontEnd) Program() string {
	if row, ok := frontEnds[f.Name]; ok {
		return row.program
	}
	return "scanwatch follow " + f.Name
}

// Server returns the program that the operator restarts, for Restart: "" for smtpd.
func (f FrontEnd) Server() string {
	if f.Name == "" || f.Name == "smtpd" {
		return ""
	}
	return f.Program()
}

// remedy returns the advice to operators if the front end is not running: a command or a question.
func (f FrontEnd) remedy() string {
	if row, ok := frontEnds[f.Name]; ok {
		return row.remedy
	}
	return "start its service, see scanwatch-servers(7)"
}

// Restart replaces "restart smtpd" in a message with "restart" and the given program. If program is
// "", the message remains unchanged.
func Restart(message, program string) string {
	if program == "" {
		return message
	}
	return strings.ReplaceAll(message, "restart smtpd", "restart "+program)
}

// ErrHeld means that another front end is running in the state directory.
var ErrHeld = errors.New("another front end uses the state directory")

// Claim registers this process as the front end of a state directory, until the returned file is
// closed. If another process is the front end, the error is ErrHeld.
func Claim(dir, name string) (lock *os.File, err error) {
	err = owner.Do(dir, func() error {
		lock, err = os.OpenFile(filepath.Join(dir, frontEndFile), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o640)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrHeld
		}
		return nil, err
	}
	// The lock is valid even if the disk is full.
	line := fmt.Sprintf("%s %d\n", name, os.Getpid())
	if _, err := lock.WriteAt([]byte(line), 0); err == nil {
		_ = lock.Truncate(int64(len(line)))
	}
	return lock, nil
}

// Holder returns the front end that made Claim return ErrHeld. A process that has just locked
// the file may not have written its name yet.
func Holder(dir string) (f FrontEnd) {
	for range 100 {
		f = LatestFrontEnd(dir)
		if f.PID > 0 && !errors.Is(syscall.Kill(f.PID, 0), syscall.ESRCH) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return f
}

var frontEndLine = regexp.MustCompile(`^([a-z]{1,20}) ([1-9][0-9]{0,9})\n`)

// LatestFrontEnd returns the front end that runs in a state directory, or ran there last.
func LatestFrontEnd(dir string) (f FrontEnd) {
	_ = owner.Do(dir, func() error {
		file, err := os.OpenFile(filepath.Join(dir, frontEndFile), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer file.Close()
		data, _ := io.ReadAll(io.LimitReader(file, 100))
		if m := frontEndLine.FindSubmatch(data); m != nil {
			f.Name = string(m[1])
			f.PID, _ = strconv.Atoi(string(m[2]))
		}
		return nil
	})
	return f
}
