//go:build linux

package milter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// syslog writes syslog(3) messages to a file. The test has its own /dev.
func (s *site) syslog(name string) {
	s.t.Helper()
	dev := s.path("dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for _, node := range []string{"null", "zero", "random", "urandom", "full", "tty"} {
		s.write("dev/"+node, "")
		if err := syscall.Mount("/dev/"+node, filepath.Join(dev, node), "", syscall.MS_BIND, ""); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = syscall.Unmount(filepath.Join(dev, node), syscall.MNT_DETACH) })
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dev, "log"), Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	file, err := os.Create(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := syscall.Mount(dev, "/dev", "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		s.t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, err := l.Read(b)
			if err != nil {
				return
			}
			_, _ = file.Write(append(bytes.TrimRight(b[:n], "\n\x00"), '\n'))
		}
	})
	s.t.Cleanup(func() {
		_ = syscall.Unmount("/dev", syscall.MNT_DETACH)
		l.Close()
		wait.Wait()
		file.Close()
	})
}

// A logging is a server whose log is read.
type logging struct {
	kind  string // kind of the log
	file  string
	start func(*site)
	// begins matches the first log line of a session.
	begins *regexp.Regexp
	// ended reports whether the log is complete.
	ended func(log string, begins [][]string) bool
}

var loggings = []logging{
	{"postfix", "maillog", func(s *site) {
		s.services = "qmgr unix n - n 300 1 qmgr\ndiscard unix - - n - - discard\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\n"
		s.startPostfix("smtpd_client_port_logging = yes\nlocal_transport = discard:\n")
	},
		regexp.MustCompile(`smtpd\[\d+\]: connect from `),
		func(log string, begins [][]string) bool {
			return strings.Count(log, ": disconnect from ") == len(begins) && strings.Count(log, "from=<a@partner.example>, size=") == strings.Count(log, ": removed\n")
		}},
	{"exim", "exim/mainlog", func(s *site) { s.startExim() },
		regexp.MustCompile(`SMTP connection from (\S+) .*connection count`),
		func(log string, begins [][]string) bool {
			return !slices.ContainsFunc(begins, func(m []string) bool { return !eximEnd(log, m[1]) })
		}},
	{"sendmail", "syslog", func(s *site) {
		s.syslog("syslog")
		s.startSendmail("define(`confLOG_LEVEL', `10')dnl\n")
	},
		regexp.MustCompile(`\[(\d+)\]: NOQUEUE: connect from `), exited},
}

// exited reports whether the processes of all sessions have exited.
func exited(_ string, begins [][]string) bool {
	return !slices.ContainsFunc(begins, func(m []string) bool {
		pid, _ := strconv.Atoi(m[1])
		return syscall.Kill(pid, 0) == nil && !zombie(pid)
	})
}

// eximEnd reports whether the log contains the end of a client's session.
func eximEnd(log, client string) bool {
	for line := range strings.Lines(log) {
		if strings.Contains(line, client) && eximEnds.MatchString(line) {
			return true
		}
	}
	return false
}

var eximEnds = regexp.MustCompile(`closed by QUIT|no MAIL in|unexpected disconnection|lost while|dropped: too many`)

const eximConf = `primary_hostname = mx.example.org
exim_user = daemon
exim_group = daemon
spool_directory = %[1]s/queue
log_file_path = %[1]s/exim/%%slog
pid_file_path = %[1]s/exim.pid
local_interfaces = 192.0.2.25
daemon_smtp_ports = 25
acl_smtp_rcpt = rcpt
queue_only
smtp_accept_max = 0
rfc1413_query_timeout = 0s
host_lookup = *
keep_environment =
%[2]s
begin acl
rcpt:
  require message = relay not permitted
          domains = example.org
  require verify = recipient
  accept
begin routers
local:
  driver = accept
  domains = example.org
  local_parts = games : postmaster
  transport = discard
begin transports
discard:
  driver = appendfile
  file = /dev/null
`

// startExim starts a real Exim with the manual's log settings.
func (s *site) startExim() {
	s.t.Helper()
	root := s.consumers("/usr/sbin/exim4")
	for _, dir := range []string{"queue", "exim"} {
		if err := os.Mkdir(s.path(dir), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Chown(s.path(dir), 1, 1); err != nil {
			s.t.Fatal(err)
		}
	}
	for _, name := range []string{"passwd", "group"} { // Exim has its own user
		text, err := os.ReadFile("/etc/" + name)
		if err != nil {
			s.t.Fatal(err)
		}
		s.write(name, string(text)+map[string]string{"passwd": "Debian-exim:x:9999:9999::/:/bin/false\n", "group": "Debian-exim:x:9999:\n"}[name])
		if err := syscall.Mount(s.path(name), "/etc/"+name, "", syscall.MS_BIND, ""); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = syscall.Unmount("/etc/"+name, syscall.MNT_DETACH) })
	}
	page, err := os.ReadFile("../../man/scanwatch-servers.7")
	if err != nil {
		s.t.Fatal(err)
	}
	selector := regexp.MustCompile(`(?ms)^log_selector = .*?$\n^    .*?$`).FindString(string(page))
	if selector == "" {
		s.t.Fatal("the manual has no log_selector")
	}
	s.write("exim.conf", fmt.Sprintf(eximConf, s.dir, strings.ReplaceAll(selector, `\e`, `\`)))
	s.run(root, "exim/mainlog", root+"/usr/sbin/exim4", "-bdf", "-C", s.path("exim.conf"))
}

// zombie reports whether a process has exited but has not yet been reaped.
func zombie(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z")
}

// startFollow starts scanwatch follow with a rule.
func (s *site) startFollow(kind, file string) *exec.Cmd {
	s.t.Helper()
	s.write("follow.conf", "mode enforce\nlog verbose\nrule harvest phase end match evidence harvest ban 1h\n")
	return s.follow("follow.conf", kind, file)
}

// follow starts scanwatch follow.
func (s *site) follow(conf, kind, file string) *exec.Cmd {
	s.t.Helper()
	follow := exec.Command(smtpd.Bin("scanwatch"), "-f", s.path(conf), "-s", s.path("followed"), "follow", kind, s.path(file))
	log := filterproc.LogFile(s.t, follow)
	if err := follow.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = follow.Process.Kill()
		_ = follow.Wait()
		if s.t.Failed() {
			s.t.Log(log())
		}
	})
	filterproc.Eventually(s.t, "scanwatch follow", func() bool { return strings.Contains(log(), "msg=started") })
	return follow
}

// logged returns a state directory's records by source.
func logged(t *testing.T, dir, kind string) map[string]record {
	t.Helper()
	all := map[string]record{}
	for line := range strings.Lines(cli.Run(t, dir, "dump")) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if r.FrontEnd != kind {
			t.Errorf("front end %q: %s", r.FrontEnd, line)
		}
		r.Rejected = nil // only scanwatch follow uses a policy
		if r.Src == "198.51.100.21" {
			continue // timing determines whether Postfix detects an early talker
		}
		if r.Src == "198.51.100.4" {
			r.Findings = nil // the order of sessions varies, and a bounce is backscatter only after mail for its domain was accepted
		}
		all[r.Src] = r
	}
	return all
}

// TestLogs checks the records that an import of a real server's log creates for each scenario.
// scanwatch follow reads the log while it is being written, and must create the same records.
func TestLogs(t *testing.T) {
	require.Full(t)
	for _, l := range loggings {
		t.Run(l.kind, func(t *testing.T) {
			s := newSite(t)
			l.start(s)
			filterproc.Eventually(t, "the log", func() bool { _, err := os.Stat(s.path(l.file)); return err == nil })
			for _, dir := range []string{"imported", "followed"} {
				if err := os.Mkdir(s.path(dir), 0o750); err != nil {
					t.Fatal(err)
				}
			}
			follow := s.startFollow(l.kind, l.file)
			playAll(t)
			filterproc.Eventually(t, "the ends of all sessions", func() bool {
				log, err := os.ReadFile(s.path(l.file))
				begins := l.begins.FindAllStringSubmatch(string(log), -1)
				return err == nil && len(begins) >= len(scenarios) && l.ended(string(log), begins)
			})
			filterproc.Eventually(t, "all lines", func() bool {
				var status struct {
					Source struct {
						Lines  int
						Behind int64
					}
				}
				cli.Decode(t, cli.Run(t, s.path("followed"), "status", "--json"), &status)
				return status.Source.Lines > 0 && status.Source.Behind == 0
			})
			_ = follow.Process.Signal(syscall.SIGTERM)
			if err := follow.Wait(); err != nil {
				t.Errorf("scanwatch follow ended with %v", err)
			}
			out := cli.Run(t, s.path("imported"), "import", l.kind, s.path(l.file))
			if !strings.Contains(out, " and 0 not understood\n") {
				t.Error(out)
			}
			got := table(nil, logged(t, s.path("imported"), l.kind))
			if followed := table(nil, logged(t, s.path("followed"), l.kind)); l.kind == "postfix" && followed != got {
				t.Errorf("followed:\n%s\nimported:\n%s", followed, got)
			}
			// Postfix and Sendmail accept the harvester's last recipient, so the session causes no ban.
			if bans := cli.Run(t, s.path("followed"), "bans"); strings.Contains(bans, "203.0.113.5") != (l.kind == "exim") || strings.Contains(bans, "198.51.100.1 ") {
				t.Errorf("bans:\n%s", bans)
			}
			compare(t, "testdata/log-"+l.kind+".golden", got)
			log, _ := os.ReadFile(s.path(l.file))
			for _, dir := range []string{"imported", "followed"} {
				for _, secret := range []string{"c2VjcmV0cGFzcw", "password=secret"} {
					if strings.Contains(cli.Run(t, s.path(dir), "dump"), secret) {
						t.Errorf("%s is recorded; in the log: %t", secret, bytes.Contains(log, []byte(secret)))
					}
				}
			}
		})
	}
}
