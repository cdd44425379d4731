//go:build linux

package tests

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"scanwatch/tests/smtpd"
)

// others are filters of other makes, and how to get them.
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
		// The libraries of this machine go with it into the root, libc and its loader
		// too: those of an old root are too old for the others.
		loader, _ := filepath.Glob("/lib*/ld-linux-*.so.*")
		if len(loader) == 0 {
			return f, errors.New("there is no loader of programs")
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

// TestHostileClientsOfOthers makes the table of the README: the attacks of
// TestHostileClients on other filters, each alone where a round of them was not
// survived. It proves nothing about this program.
func TestHostileClientsOfOthers(t *testing.T) {
	if os.Getenv("SCANWATCH_OTHERS") == "" {
		t.Skip("SCANWATCH_OTHERS=1 tries the attacks on other filters, for the table of the README")
	}
	for _, v := range smtpd.Versions {
		for _, other := range others {
			t.Run(v.Name+"/"+other.name, func(t *testing.T) {
				smtpd.Require(t, v)
				f, err := other.make(t, t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				o := smtpd.Options{Version: v, Filters: []smtpd.Filter{f}, Hosts: append(smtpd.Hosts(), smtpd.Host{Addr: friend, Name: friendName, Confirmed: true})}
				list := possible(v)
				fate := make([]string, len(list))
				for first := 0; first < len(list); first += atOnce {
					last := min(first+atOnce, len(list))
					switch what := suffers(o, list[first:last], first, deliver); {
					case what == "":
						continue
					case strings.HasPrefix(what, notStarted):
						t.Skipf("SKIP: OpenSMTPD %s with %s %s", v.Name, other.name, what)
					}
					for i := first; i < last; i++ {
						fate[i] = suffers(o, list[i:i+1], i, deliver)
					}
				}
				list, fate = append(list, attack{name: "local mail"}), append(fate, local(o))
				tell := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
				for i, a := range list {
					if fate[i] != "" {
						fmt.Fprintf(tell, "%s\t%s\t%s\t%s\n", v.Name, other.name, a.name, fate[i])
					}
				}
				n := len(list) - len(slices.DeleteFunc(fate, func(s string) bool { return s != "" }))
				fmt.Fprintf(tell, "%s\t%s\t%d attacks, %d of them end or hang the server\n", v.Name, other.name, len(list), n)
				tell.Flush()
			})
		}
	}
}

// local tells what became of a server whose filter saw local mail.
func local(o smtpd.Options) string {
	o.Socket = true
	s, err := smtpd.Start(o)
	if err != nil {
		return notStarted + lastWords(err.Error())
	}
	defer func() { _ = s.Stop() }()
	if err := errors.Join(s.Sendmail(strings.NewReader("Subject: x\n\nx\n"), "alice@example.org"), deliver(s)); err != nil || !s.Alive() {
		return "smtpd ends: " + lastWords(s.Log())
	}
	return ""
}

// deliver sends a good mail.
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

// lastWords are what a filter, or smtpd about it, said at the end.
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
