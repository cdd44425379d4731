//go:build linux

package milter

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// consumers returns the directory of unpacked programs, as seen by the server. consumers skips the
// test if a program is missing.
func (s *site) consumers(program string) string {
	s.t.Helper()
	if s.suite != "" {
		if _, err := os.Stat(s.root() + "/consumers" + program); err != nil {
			require.Missing(s.t, "no %s in %s/consumers; see tests/consumers.sh", program, s.root())
		}
		return "/consumers"
	}
	dir := filepath.Join(roots(), "consumers")
	if _, err := os.Stat(dir + program); err != nil {
		require.Missing(s.t, "no %s in %s; see tests/consumers.sh", program, dir)
	}
	return dir
}

func roots() string {
	if dir := os.Getenv("SCANWATCH_ROOTS"); dir != "" {
		return dir
	}
	return "/var/cache/scanwatch-tests"
}

// root returns the server's root directory, or "" if the server has the same root as the test.
func (s *site) root() string {
	if s.suite == "" {
		return ""
	}
	return filepath.Join(roots(), s.suite)
}

// A site is a mail server and, unless the server runs alone, milter-scanwatch.
type site struct {
	t      *testing.T
	suite  string // Debian version of the root that the server runs in; "" for the test's root
	dir    string
	milter *exec.Cmd // nil if the server runs alone
	log    func() string
	// services are additional Postfix services.
	services string
	// screened is set if postscreen(8) screens clients before Postfix's smtpd(8).
	screened bool
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// newSite returns a site without programs.
func newSite(t *testing.T) *site {
	t.Helper()
	return newSiteIn(t, "")
}

// newSiteIn is like newSite, but the server is from another Debian version.
func newSiteIn(t *testing.T, suite string) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		require.Missing(t, "the test needs root, to run mail servers")
	}
	// Sendmail rejects sockets below a directory that all users can write to.
	dir, err := os.MkdirTemp("/run", "scanwatch-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // the mail server's users need access
		t.Fatal(err)
	}
	s := &site{t: t, suite: suite, dir: dir}
	s.write("resolv.conf", "nameserver 127.0.0.1\n") // without a name server, lookups fail immediately
	s.write("hosts", "192.0.2.25 mx.example.org\n198.51.100.1 mail.partner.example\n")
	for _, name := range []string{"resolv.conf", "hosts"} {
		at := s.root() + "/etc/" + name
		f, err := os.OpenFile(at, os.O_CREATE, 0o644) // the root may lack this file
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		s.bind(s.path(name), at)
	}
	if suite != "" {
		inside := s.root() + dir
		if err := os.MkdirAll(inside, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(inside) })
		s.bind(dir, inside)
		s.bind("/dev", s.root()+"/dev")
	}
	return s
}

// bind mounts a file or directory at a different path for the duration of the test.
func (s *site) bind(from, to string) {
	s.t.Helper()
	if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = syscall.Unmount(to, syscall.MNT_DETACH) })
}

// startMilter starts milter-scanwatch.
func (s *site) startMilter(conf string) {
	s.t.Helper()
	s.write("scanwatch.conf", conf)
	s.milter = exec.Command(smtpd.Bin("milter-scanwatch"), "-v", "-f", s.path("scanwatch.conf"), "-s", s.path("state"), "-g", "daemon", "-l", "unix:"+s.path("milter.sock"))
	s.log = filterproc.LogFile(s.t, s.milter)
	if err := s.milter.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = s.milter.Process.Kill()
		_ = s.milter.Wait()
		if s.t.Failed() {
			s.t.Log(s.log())
		}
	})
	filterproc.Eventually(s.t, "milter-scanwatch", func() bool { return strings.Contains(s.log(), "msg=started") })
}

// stopMilter stops milter-scanwatch, which saves its records, and returns its log.
func (s *site) stopMilter() string {
	s.t.Helper()
	_ = s.milter.Process.Signal(syscall.SIGTERM)
	if err := s.milter.Wait(); err != nil {
		s.t.Errorf("milter-scanwatch ended with %v", err)
	}
	return s.log()
}

// recipe returns a mail server's configuration from the manual, with the test's socket.
func (s *site) recipe(server string) string {
	s.t.Helper()
	page, err := os.ReadFile("../../man/milter-scanwatch.8")
	if err != nil {
		s.t.Fatal(err)
	}
	_, item, _ := strings.Cut(string(page), "\n.Ss "+server+"\n")
	_, text, _ := strings.Cut(item, ".Bd -literal -offset indent\n")
	text, _, ok := strings.Cut(text, ".Ed\n")
	if !ok || !strings.Contains(text, sockets[server]) {
		s.t.Fatalf("the manual has no configuration of %s", server)
	}
	return strings.ReplaceAll(text, sockets[server], "unix:"+s.path("milter.sock"))
}

// sockets contains the sockets in the manual.
var sockets = map[string]string{"Postfix": "unix:scanwatch/milter.sock", "Sendmail": "unix:/run/scanwatch/milter.sock"}

// run starts a mail server and waits until it answers.
func (s *site) run(root, log string, name string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+root+"/usr/lib/postfix:"+root+"/usr/lib/x86_64-linux-gnu:"+root+"/lib/x86_64-linux-gnu")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Chroot: s.root()}
	cmd.Dir = "/"
	stderr := filterproc.LogFile(s.t, cmd)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if s.t.Failed() {
			maillog, _ := os.ReadFile(s.path(log))
			s.t.Logf("%s\n%s", stderr(), maillog)
		}
	})
	filterproc.Eventually(s.t, name, func() bool {
		c, err := net.Dial("tcp", server)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

const server = "192.0.2.25:25"

const mainCF = `compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
daemon_directory = %[2]s/usr/lib/postfix/sbin
command_directory = %[2]s/usr/sbin
mail_owner = daemon
setgid_group = mail
default_privs = nobody
inet_interfaces = 192.0.2.25
inet_protocols = ipv4
myhostname = mx.example.org
mydestination = example.org
alias_maps =
alias_database =
local_recipient_maps = inline:{ {games=x}, {postmaster=x} }
mynetworks = 127.0.0.0/8
maillog_file = %[1]s/maillog
maillog_file_prefixes = /
import_environment = MAIL_CONFIG MAIL_LOGTAG POSTLOG_SERVICE POSTLOG_HOSTNAME LD_LIBRARY_PATH LANG=C
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
smtp_host_lookup = native
smtpd_error_sleep_time = 0
default_process_limit = 1500
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
`

const masterCF = `192.0.2.25:25 inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
anvil unix - - n - 1 anvil
rewrite unix - - n - - trivial-rewrite
cleanup unix n - n - 0 cleanup
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
`

// startPostfix starts a real Postfix. extra is added to its configuration.
func (s *site) startPostfix(extra string) {
	s.t.Helper()
	root := s.consumers("/usr/lib/postfix/sbin/master")
	for _, dir := range []string{"postfix", "data", "queue", "queue/pid", "queue/private", "queue/public", "queue/incoming", "queue/active", "queue/maildrop", "queue/deferred", "queue/defer", "queue/bounce", "queue/corrupt", "queue/hold"} {
		if err := os.Mkdir(s.path(dir), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if dir != "postfix" && dir != "queue" && dir != "queue/pid" {
			if err := os.Chown(s.path(dir), 1, 1); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	s.write("postfix/main.cf", fmt.Sprintf(mainCF, s.dir, root)+extra)
	master := masterCF
	if s.screened {
		master = strings.Replace(master, "- smtpd\n", "1 postscreen\nsmtpd pass - - n - - smtpd\ndnsblog unix - - n - 0 dnsblog\ntlsproxy unix - - n - 0 tlsproxy\n", 1)
	}
	s.write("postfix/master.cf", master+s.services)
	s.run(root, "maillog", root+"/usr/lib/postfix/sbin/master", "-c", s.path("postfix"), "-d")
}

const sendmailMC = `OSTYPE(linux)dnl
define(` + "`confDOMAIN_NAME', `mx.example.org'" + `)dnl
define(` + "`confPID_FILE', `%[1]s/sendmail.pid'" + `)dnl
define(` + "`QUEUE_DIR', `%[1]s/queue'" + `)dnl
define(` + "`STATUS_FILE', `%[1]s/statistics'" + `)dnl
MODIFY_MAILER_FLAGS(` + "`LOCAL', `-A'" + `)dnl
define(` + "`LOCAL_MAILER_PATH', `/bin/true'" + `)dnl
define(` + "`LOCAL_MAILER_ARGS', `true'" + `)dnl
define(` + "`confTO_IDENT', `0'" + `)dnl
define(` + "`confBAD_RCPT_THROTTLE', `0'" + `)dnl
define(` + "`confREFUSE_LA', `1000'" + `)dnl
define(` + "`confQUEUE_LA', `1000'" + `)dnl
define(` + "`confMAX_DAEMON_CHILDREN', `0'" + `)dnl
define(` + "`confCONNECTION_RATE_THROTTLE', `0'" + `)dnl
FEATURE(` + "`no_default_msa'" + `)dnl
FEATURE(` + "`accept_unresolvable_domains'" + `)dnl
FEATURE(` + "`nocanonify'" + `)dnl
DAEMON_OPTIONS(` + "`Addr=192.0.2.25, Port=25, Name=MTA'" + `)dnl
%[2]sLOCAL_DOMAIN(` + "`example.org'" + `)dnl
MAILER(local)dnl
MAILER(smtp)dnl
`

// startSendmail starts a real Sendmail.
func (s *site) startSendmail(extra string) {
	s.t.Helper()
	require.Program(s.t, "m4")
	root := s.consumers("/usr/libexec/sendmail/sendmail")
	if err := os.Mkdir(s.path("queue"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.write("a.mc", fmt.Sprintf(sendmailMC, s.dir, extra))
	m4 := exec.Command("m4", "m4/cf.m4", s.path("a.mc"))
	m4.Dir = s.root() + root + "/usr/share/sendmail/cf"
	cf, err := m4.Output()
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("a.cf", string(cf))
	if etc := s.root() + "/etc/mail"; os.Mkdir(etc, 0o755) == nil {
		s.t.Cleanup(func() { os.Remove(etc) })
	}
	s.run(root, "log", root+"/usr/libexec/sendmail/sendmail", "-bD", "-X", s.path("log"), "-C", s.path("a.cf"))
}

// servers maps the mail servers' names to the functions that start them.
var servers = map[string]func(*site, string){"Postfix": (*site).startPostfix, "Sendmail": (*site).startSendmail}
