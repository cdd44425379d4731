//go:build linux

package smtpd

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RelayDomain is the domain whose mail goes to Options.Relay.
const RelayDomain = "sink.example"

const (
	patience = 90 * time.Second // time limit for each step of a server or client; reached only on failure
	pollStep = 5 * time.Millisecond
)

// Options configures a server. Only Version is required.
type Options struct {
	Version Version

	// Dir is the server's directory on this machine. File systems that are mounted below Dir are
	// also mounted in the server's root. All users must be able to enter Dir. A later server with
	// the same Dir continues with the filter's state. By default, Dir is a temporary directory that
	// Stop removes.
	Dir string

	Filters  []Filter // in the order of the chain; may be empty
	Socket   bool     // pass local mail to the filters as well
	Wildcard bool     // listen only on 0.0.0.0 and ::, not on individual addresses
	Hosts    []Host   // clients with names in DNS
	Members  []string // existing local parts other than Recipients
	Prelude  string   // lines for smtpd.conf, before the filters
	Preload  string   // library on this machine that smtpd preloads
	Relay    string   // where mail for RelayDomain goes, such as smtp://127.0.0.1:2600
	Syslog   bool     // log with syslog(3); the log then has the format of a syslog daemon

	// Ready changes how Start waits. If Ready is set, Start waits until smtpd is listening and
	// Ready returns true. Otherwise, Start connects once from 127.0.0.1 and waits for the greeting.
	// The filters record this connection as a session.
	Ready func() bool
}

// A Server is a running smtpd.
type Server struct {
	Version Version
	Dir     string // on this machine; has state, mail, smtpd.conf and smtpd.log

	root      string
	main      string // program that KillFilter kills
	preload   string // path in the root
	cmd       *exec.Cmd
	ended     chan struct{} // closed when cmd.Wait has returned
	waitErr   error         // valid once ended is closed
	log       *os.File
	syslog    *syslogd // nil without Options.Syslog
	lock      *os.File
	dns       net.PacketConn
	dnsErr    chan error
	mounts    []string // to be unmounted
	temporary bool
	released  bool
	tls       *tls.Config
}

// Start starts a server and waits until it accepts mail. Only one server at a time can
// run in a root. If another program is using the root, Start waits.
func Start(o Options) (*Server, error) {
	if err := Check(o.Version); err != nil {
		return nil, err
	}
	s := &Server{Version: o.Version, Dir: o.Dir, root: o.Version.dir()}
	if err := s.start(o); err != nil {
		log := s.Log()
		if s.cmd != nil {
			s.cmd.Process.Kill()
			<-s.ended
		}
		return nil, fmt.Errorf("start OpenSMTPD %s: %w%s", o.Version.Name, errors.Join(err, s.release()), indent(log))
	}
	return s, nil
}

func indent(log string) string {
	if log == "" {
		return ""
	}
	return "\n\t" + strings.ReplaceAll(strings.TrimSuffix(log, "\n"), "\n", "\n\t")
}

func (s *Server) start(o Options) error {
	var err error
	if s.lock, err = lockRoot(s.root); err != nil {
		return err
	}
	if s.Dir == "" {
		s.temporary = true
		// Use a short path, because socket paths are limited in length.
		if s.Dir, err = os.MkdirTemp("", "smtpd-"); err != nil {
			return err
		}
	}
	if s.Dir, err = filepath.Abs(s.Dir); err != nil {
		return err
	}
	if err := s.fill(o); err != nil {
		return err
	}
	if err := s.mountAll(); err != nil {
		return err
	}
	if err := s.credentials(); err != nil {
		return err
	}
	if err := s.startDNS(o.Hosts); err != nil {
		return err
	}
	if o.Syslog {
		if s.syslog, err = startSyslog(filepath.Join(s.root, "dev/log"), s.log); err != nil {
			return err
		}
	}
	if err := s.run(); err != nil {
		return err
	}
	return s.ready(o)
}

func lockRoot(root string) (*os.File, error) {
	f, err := os.OpenFile(root+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// fill writes the server's files into its directory. Only the filter's state, the log and delivered
// mail are kept from an earlier server.
func (s *Server) fill(o Options) error {
	type file struct {
		name string
		data []byte
		mode os.FileMode
	}
	config, err := o.config()
	if err != nil {
		return err
	}
	cert, key, err := certificate()
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	s.tls = &tls.Config{RootCAs: pool, ServerName: HostName}

	var users strings.Builder
	for _, user := range append(o.Members, Recipients...) {
		fmt.Fprintf(&users, "%s mailuser\n", user)
	}
	// Remove the spool. Otherwise smtpd would deliver mail queued by an earlier server.
	if err := os.RemoveAll(filepath.Join(s.Dir, "spool")); err != nil {
		return err
	}
	daemon, err := account(s.root, "opensmtpd")
	if err != nil {
		return err
	}
	mailuser, err := account(s.root, "mailuser")
	if err != nil {
		return err
	}
	for _, dir := range []struct {
		name  string
		mode  os.FileMode
		owner [2]int
	}{
		{"", 0o755, [2]int{}},
		{"bin", 0o755, [2]int{}},
		{"etc", 0o755, [2]int{}},
		{"tls", 0o700, [2]int{}},
		{"spool", 0o711, [2]int{}},
		{"state", 0o750, daemon},
		{"mail", 0o700, mailuser},
	} {
		path := filepath.Join(s.Dir, dir.name)
		if err := os.MkdirAll(path, dir.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, dir.mode); err != nil { // regardless of the umask
			return err
		}
		if err := os.Chown(path, dir.owner[0], dir.owner[1]); err != nil {
			return err
		}
	}
	files := []file{
		{"smtpd.conf", []byte(config), 0o644},
		{"users", []byte(users.String()), 0o644},
		{"credentials", nil, 0o640},
		{"tls/cert.pem", cert, 0o644},
		{"tls/key.pem", key, 0o600}, // the mode that smtpd requires
		{"etc/hosts", []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644},
		{"etc/resolv.conf", []byte("nameserver 127.0.0.1\n"), 0o644},
		{"etc/mailname", []byte(HostName + "\n"), 0o644},
	}
	for _, f := range o.Filters {
		if f.Builtin != "" {
			continue
		}
		for _, program := range append([]string{f.Path}, f.Also...) {
			data, err := os.ReadFile(program)
			if err != nil {
				return fmt.Errorf("program of filter %s: %w", f.name(), err)
			}
			files = append(files, file{"bin/" + filepath.Base(program), data, 0o755})
		}
		if s.main == "" {
			s.main = filepath.Join(s.Dir, "bin", filepath.Base(append(f.Also, f.Path)[0]))
		}
	}
	if o.Preload != "" {
		data, err := os.ReadFile(o.Preload)
		if err != nil {
			return err
		}
		s.preload = Program(filepath.Base(o.Preload))
		files = append(files, file{"bin/" + filepath.Base(o.Preload), data, 0o755})
	}
	for _, f := range files {
		path := filepath.Join(s.Dir, f.name)
		// Create a new file, because the file of a program that is still running cannot be
		// overwritten.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, f.data, f.mode); err != nil {
			return err
		}
		if err := os.Chmod(path, f.mode); err != nil {
			return err
		}
	}
	s.log, err = os.OpenFile(filepath.Join(s.Dir, "smtpd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	return err
}

// account returns the user and group IDs of an account in the root.
func account(root, name string) (ids [2]int, err error) {
	path := filepath.Join(root, "etc/passwd")
	data, err := os.ReadFile(path)
	if err != nil {
		return ids, err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[0] != name {
			continue
		}
		uid, err1 := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		return [2]int{uid, gid}, errors.Join(err1, err2)
	}
	return ids, fmt.Errorf("%s has no account %s: run tests/roots.sh %s", path, name, filepath.Base(root))
}

// mountAll mounts the server's directory, the spool and the name service files in the
// root. The mounts are visible only in this program's namespace.
func (s *Server) mountAll() error {
	for _, m := range []struct{ from, to string }{
		{"", rootDir},
		{"spool", "/var/spool/smtpd"},
		{"etc/hosts", "/etc/hosts"},
		{"etc/resolv.conf", "/etc/resolv.conf"},
		{"etc/mailname", "/etc/mailname"},
	} {
		from, to := filepath.Join(s.Dir, m.from), filepath.Join(s.root, m.to)
		if err := mountPoint(to, strings.HasPrefix(m.to, "/etc/")); err != nil {
			return err
		}
		if err := syscall.Mount(from, to, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", from, to, err)
		}
		s.mounts = append(s.mounts, to)
	}
	return nil
}

func mountPoint(path string, file bool) error {
	if !file {
		return os.MkdirAll(path, 0o755)
	}
	f, err := os.OpenFile(path, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// credentials hashes the passwords of Accounts with the version's own smtpctl.
func (s *Server) credentials() error {
	if !s.Version.TLS {
		return nil
	}
	var b strings.Builder
	for _, a := range Accounts {
		out, err := s.command(nil, "/usr/sbin/smtpctl", "encrypt", a.Password).Output()
		if err != nil {
			return fmt.Errorf("smtpctl encrypt: %w", err)
		}
		fmt.Fprintf(&b, "%s %s\n", a.User, bytes.TrimSpace(out))
	}
	// smtpd reads the file as root, before dropping privileges.
	return os.WriteFile(filepath.Join(s.Dir, "credentials"), []byte(b.String()), 0o640)
}

// command returns a command that runs one of the root's programs inside the root.
func (s *Server) command(stdin io.Reader, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}
	cmd.Stdin = stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root}
	return cmd
}

func (s *Server) startDNS(hosts []Host) error {
	z, err := newZone(hosts)
	if err != nil {
		return err
	}
	if s.dns, err = net.ListenPacket("udp", "127.0.0.1:53"); err != nil {
		return fmt.Errorf("name server: %w", err)
	}
	s.dnsErr = make(chan error, 1)
	go func() { s.dnsErr <- z.serveDNS(s.dns) }()
	return nil
}

// run starts smtpd in the foreground, in its own process group.
func (s *Server) run() error {
	where := "-d"
	if s.syslog != nil {
		where = "-F"
	}
	s.cmd = s.command(nil, "/usr/sbin/smtpd", where, "-f", rootDir+"/smtpd.conf")
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if s.preload != "" {
		s.cmd.Env = append(s.cmd.Env, "LD_PRELOAD="+s.preload)
	}
	s.cmd.SysProcAttr.Setpgid = true
	// The kernel must kill smtpd when this program dies. The kernel sends the signal when the
	// thread that started smtpd ends, so the thread must be locked.
	s.cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	s.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		s.waitErr = s.cmd.Wait()
		close(s.ended)
	}()
	if err := <-started; err != nil {
		s.cmd = nil
		return fmt.Errorf("run smtpd in %s: %w", s.root, err)
	}
	return nil
}

func (s *Server) ready(o Options) error {
	if err := s.Eventually("smtpd listens", func() bool { return listening(s.Version.ports()) }); err != nil {
		return err
	}
	if o.Ready != nil {
		return s.Eventually("the filter is ready", o.Ready)
	}
	// Connect and read the greeting. smtpd listens earlier, but sends no greeting until the filters
	// have registered.
	c, err := s.Dial("127.0.0.1", PortMX)
	if err != nil {
		return err
	}
	defer c.Close()
	if reply, err := c.ReadReply(); err != nil || reply.Code != 220 {
		return fmt.Errorf("greeting: %v: %w", reply, err)
	}
	_, err = c.Cmd("QUIT")
	return err
}

// listening reports whether there is a listener on every port.
func listening(ports []int) bool {
	open := map[int]bool{}
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(name)
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			const stateListen = "0A"
			if len(f) < 4 || f[3] != stateListen {
				continue
			}
			_, port, _ := strings.Cut(f[1], ":")
			if n, err := strconv.ParseUint(port, 16, 16); err == nil {
				open[int(n)] = true
			}
		}
	}
	for _, port := range ports {
		if !open[port] {
			return false
		}
	}
	return true
}

// Eventually waits until cond returns true. It returns an error if smtpd exits or the
// time limit is reached. what describes cond.
func (s *Server) Eventually(what string, cond func() bool) error {
	deadline := time.Now().Add(patience)
	for {
		alive := s.Alive() // check first, because smtpd may exit just after cond has become true
		switch {
		case cond():
			return nil
		case !alive:
			return fmt.Errorf("waiting until %s: %w", what, ErrEnded)
		case time.Now().After(deadline):
			return fmt.Errorf("%s: not within %v", what, patience)
		}
		time.Sleep(pollStep)
	}
}

// ErrEnded means that smtpd exited without SIGTERM. smtpd exits if a filter exits or
// violates the protocol.
var ErrEnded = errors.New("smtpd ended early")

// Alive reports whether smtpd is running.
func (s *Server) Alive() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// Ended returns a channel that is closed when smtpd exits.
func (s *Server) Ended() <-chan struct{} { return s.ended }

// Log returns the log of smtpd and its filters.
func (s *Server) Log() string {
	data, err := os.ReadFile(filepath.Join(s.Dir, "smtpd.log"))
	if err != nil {
		return ""
	}
	return string(data)
}

// FilterLog returns the lines that the named filter wrote to standard error. It
// excludes smtpd's own lines, which contain passwords from rejected commands.
func (s *Server) FilterLog(name string) string {
	var b strings.Builder
	for line := range strings.Lines(s.Log()) {
		if text, ok := strings.CutPrefix(line, name+": "); ok {
			b.WriteString(text)
		}
	}
	return b.String()
}

// State returns the directory on this machine that filters see as StateDir, and that
// belongs to the filters' user.
func (s *Server) State() string { return filepath.Join(s.Dir, "state") }

// Mail returns the maildir that receives all delivered mail.
func (s *Server) Mail() string { return filepath.Join(s.Dir, "mail") }

// Sendmail sends a message with sendmail(8), like local programs.
func (s *Server) Sendmail(stdin io.Reader, args ...string) error {
	out, err := s.command(stdin, "/usr/sbin/sendmail", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("sendmail %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Dial connects to a port of the server. from is the client's address, by default 127.0.0.1. This
// address must not be one of the server's addresses. Clients with loopback addresses connect to the
// server on loopback, and all others to Addr4 or Addr6. smtpd queues five connections. Further
// concurrent connections must wait for retransmissions.
func (s *Server) Dial(from string, port int) (*Client, error) {
	if from == "" {
		from = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(from)
	if err != nil {
		return nil, fmt.Errorf("client address: %w", err)
	}
	to := Addr6
	switch {
	case addr.Is4() && addr.IsLoopback():
		to = "127.0.0.1"
	case addr.Is4():
		to = Addr4
	case addr.IsLoopback():
		to = "::1"
	}
	dialer := net.Dialer{
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)),
		Control:   bindAnywhere,
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(to, strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("connect from %s: %w", from, err)
	}
	return newClient(conn.(*net.TCPConn), s.tls), nil
}

// bindAnywhere allows an IPv6 socket to use an address that is local only because of a
// route. IPv4 sockets need no option.
func bindAnywhere(network, _ string, conn syscall.RawConn) error {
	if network != "tcp6" {
		return nil
	}
	const ipv6Freebind = 78 // linux/in6.h
	var err error
	if e := conn.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, ipv6Freebind, 1)
	}); e != nil {
		return e
	}
	return err
}

// Stop stops the server and waits until smtpd and the filters exit. It returns an error if smtpd
// exited earlier (ErrEnded), exits with an error, or leaves a process running. Stop kills such a
// process. A second call does nothing.
func (s *Server) Stop() error {
	if s.released {
		return nil
	}
	var err error
	if s.Alive() {
		err = s.terminate()
	} else {
		err = fmt.Errorf("%w%s", ErrEnded, indent(s.Log()))
	}
	return errors.Join(err, s.release())
}

func (s *Server) terminate() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop smtpd: %w", err)
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.cmd.Process.Kill()
		<-s.ended
		return fmt.Errorf("smtpd ignored SIGTERM for %v%s", patience, indent(s.Log()))
	}
	if s.waitErr != nil {
		return fmt.Errorf("smtpd: %w%s", s.waitErr, indent(s.Log()))
	}
	return nil
}

// release waits for the processes in the root, and undoes the changes that Start has made.
func (s *Server) release() error {
	s.released = true
	err := s.reap()
	if s.syslog != nil {
		err = errors.Join(err, s.syslog.Close())
	}
	if s.dns != nil {
		err = errors.Join(err, s.dns.Close(), <-s.dnsErr)
	}
	for i := len(s.mounts) - 1; i >= 0; i-- {
		if e := syscall.Unmount(s.mounts[i], syscall.MNT_DETACH); e != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", s.mounts[i], e))
		}
	}
	for _, f := range []*os.File{s.log, s.lock} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	// Do not remove the directory while file systems are mounted in it, because the mounted files
	// belong to the root.
	if s.temporary && err == nil {
		err = os.RemoveAll(s.Dir)
	}
	return err
}

// reap waits for the filters and other child processes of smtpd, which exit soon after smtpd.
// Processes that do not exit are killed.
func (s *Server) reap() error {
	deadline := time.Now().Add(patience)
	for {
		left, err := s.processes()
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			var b strings.Builder
			for _, p := range left {
				fmt.Fprintf(&b, " %d (%s)", p.pid, p.command)
				syscall.Kill(p.pid, syscall.SIGKILL)
			}
			return fmt.Errorf("smtpd left processes, now killed:%s", b.String())
		}
		time.Sleep(pollStep)
	}
}

// A process is a process running in the root.
type process struct {
	pid     int
	command string
}

// processes returns the processes in this namespace whose root directory is in the root.
// Zombies are omitted, because they have no root directory.
func (s *Server) processes() ([]process, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// An error means that the process has exited.
		proc := filepath.Join("/proc", e.Name())
		if ns, err := os.Readlink(proc + "/ns/mnt"); err != nil || ns != own {
			continue
		}
		root, err := os.Readlink(proc + "/root")
		if err != nil || root != s.root && !strings.HasPrefix(root, s.root+"/") {
			continue
		}
		args, err := os.ReadFile(proc + "/cmdline")
		if err != nil {
			continue
		}
		list = append(list, process{pid, string(bytes.TrimRight(bytes.ReplaceAll(args, []byte{0}, []byte{' '}), " "))})
	}
	return list, nil
}

// PIDs returns the process IDs of smtpd and its filters.
func (s *Server) PIDs() (pids []int, err error) {
	list, err := s.processes()
	for _, p := range list {
		pids = append(pids, p.pid)
	}
	return pids, err
}

// FilterPIDs returns the process IDs of the first filter, excluding teefilter.
func (s *Server) FilterPIDs() ([]int, error) {
	program, err := os.Stat(s.main)
	if err != nil {
		return nil, fmt.Errorf("program of the first filter: %w", err)
	}
	list, err := s.processes()
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, p := range list {
		exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", p.pid))
		if err == nil && os.SameFile(exe, program) {
			pids = append(pids, p.pid)
		}
	}
	return pids, nil
}

// KillFilter kills the first filter's process group with SIGKILL. It waits until smtpd exits as a
// result.
func (s *Server) KillFilter() error {
	pids, err := s.FilterPIDs()
	if err != nil {
		return err
	}
	if len(pids) != 1 {
		return fmt.Errorf("kill filter: %d processes are running %s, want 1", len(pids), s.main)
	}
	group, err := syscall.Getpgid(pids[0])
	if err != nil {
		return fmt.Errorf("process group of the filter: %w", err)
	}
	// smtpd starts each filter in a separate session and process group.
	if group == syscall.Getpgrp() || group == s.cmd.Process.Pid {
		return fmt.Errorf("the filter shares process group %d with others: not killed", group)
	}
	if err := syscall.Kill(-group, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill process group %d: %w", group, err)
	}
	select {
	case <-s.ended:
		return s.release()
	case <-time.After(patience):
		return fmt.Errorf("smtpd survived its filter for %v", patience)
	}
}
