package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onTerminal runs the program with standard output connected to a terminal of the given size, and
// returns its output.
func onTerminal(t *testing.T, columns, rows uint16, args ...string) string {
	t.Helper()
	ctrl, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("SKIP: ", err)
	}
	defer ctrl.Close()
	fd := int(ctrl.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0), unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	done := make(chan error, 1)
	go func() { // until the last descriptor of the terminal has been closed
		_, err := io.Copy(&out, ctrl)
		done <- err
	}()
	var stderr bytes.Buffer
	status := program(&stderr).main(args, tty)
	tty.Close()
	if err := <-done; !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if status != exitOK {
		t.Fatalf("%q: status %d: %s", args, status, &stderr)
	}
	return strings.ReplaceAll(out.String(), "\r\n", "\n")
}

// TestTerminal checks that a terminal shows each view like a pipe, except for the styles of
// headings, and that NO_COLOR switches these off.
func TestTerminal(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(mkViews("state"), os.WriteFile("state/front-end", []byte("smtpd 1\n"), 0o640), os.WriteFile("scanwatch.conf", []byte(viewsConf), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TERM", "xterm")
	styles := strings.NewReplacer("\x1b[1m", "", "\x1b[31m", "", "\x1b[0m", "")
	for _, v := range views {
		args := append([]string{"-s", "state", "-f", "scanwatch.conf"}, strings.Fields(v.args)...)
		var stdout, stderr bytes.Buffer
		t.Setenv("NO_COLOR", "")
		t.Setenv("COLUMNS", "80")
		program(&stderr).main(args, &stdout)
		t.Setenv("COLUMNS", "200") // the terminal's size takes precedence
		coloured := onTerminal(t, 80, 24, args...)
		if got := styles.Replace(coloured); got != stdout.String() {
			t.Errorf("%s: a terminal shows\n%s\na pipe receives\n%s", v.args, coloured, &stdout)
		}
		if v.name == "report" && !strings.Contains(coloured, "\n\x1b[1mScanning hosts\x1b[0m\n") {
			t.Errorf("no styled heading in\n%s", coloured)
		}
		t.Setenv("NO_COLOR", "1")
		if got := onTerminal(t, 80, 24, args...); got != stdout.String() {
			t.Errorf("%s with NO_COLOR: a terminal shows\n%s\na pipe receives\n%s", v.args, got, &stdout)
		}
		t.Setenv("COLUMNS", "")
		if got := onTerminal(t, 0, 0, args...); got != stdout.String() {
			t.Errorf("%s: a terminal of unknown size shows\n%s\na pipe receives\n%s", v.args, got, &stdout)
		}
	}
}
