//go:build linux

package hostile

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/smtpd"
)

// others lists other authors' filters, with functions that build them.
var others = []struct {
	name string
	make func(t *testing.T, dir string) (smtpd.Filter, error)
}{
	{name: "OpenSMTPD-framework, empty", make: func(t *testing.T, dir string) (smtpd.Filter, error) {
		f := smtpd.Filter{Name: "framework", Path: filepath.Join(dir, "framework")}
		cmd := exec.Command("go", "build", "-o", f.Path, "scanwatch/tests/framework")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		return f, output(cmd)
	}},
	{name: "libopensmtpd, empty", make: func(t *testing.T, dir string) (smtpd.Filter, error) {
		f := smtpd.Filter{Name: "libopensmtpd", Path: filepath.Join(dir, "empty")}
		// Copy this machine's libraries, including libc and its loader, into the root. Old roots
		// contain libraries that are too old for the filters.
		loader, _ := filepath.Glob("/lib*/ld-linux-*.so.*")
		if len(loader) == 0 {
			return f, errors.New("no dynamic loader")
		}
		f.Also = loader[:1]
		cmd := exec.Command("cc", "-w", "-o", f.Path, "others/empty.c", "-Wl,-rpath,"+filepath.Dir(smtpd.Program("x")), "-Wl,--disable-new-dtags",
			"-Wl,--dynamic-linker="+smtpd.Program(filepath.Base(loader[0])), "-lopensmtpd")
		if err := output(cmd); err != nil {
			return f, fmt.Errorf("%w (apt-get install gcc libopensmtpd-dev)", err)
		}
		for _, lib := range []string{"libopensmtpd.so.0", "libevent-2.1.so.7", "libc.so.6"} {
			found, _ := filepath.Glob("/usr/lib/*/" + lib)
			f.Also = append(f.Also, found...)
		}
		return f, nil
	}},
	{name: "Perl logger, a file an event", make: func(t *testing.T, dir string) (smtpd.Filter, error) {
		return smtpd.Filter{Name: "logger", Path: "others/logger.pl", Args: []string{smtpd.StateDir}}, nil
	}},
}

func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// deliver sends legitimate mail.
func deliver(s *smtpd.Server) error {
	c, err := s.Dial(friend, smtpd.PortMX)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.ReadReply(); err != nil {
		return err
	}
	for _, line := range []string{"EHLO " + friendName, "MAIL FROM:<a@example.net>", "RCPT TO:<alice@example.org>", "DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT"} {
		if r, err := c.Cmd(line); err != nil || r.Code >= 400 {
			return fmt.Errorf("%s: %v: %w", line, r, err)
		}
	}
	return nil
}

// lastWords returns the last messages of a filter, or of smtpd about that filter.
func lastWords(log string) string {
	said := ""
	for line := range strings.Lines(log) {
		if line = strings.TrimSpace(line); strings.Contains(line, "warn: ") || strings.Contains(line, "fatal") || strings.HasPrefix(line, "framework: 20") || strings.HasPrefix(line, "libopensmtpd: ") || strings.HasPrefix(line, "logger: ") {
			said = said + "; " + line
		}
	}
	if n := 160; len(said) > n {
		said = said[len(said)-n:]
	}
	return fmt.Sprintf("%q", said)
}
