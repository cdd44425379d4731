//go:build linux

package milter

import (
	"context"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// User IDs of the companions. The users need no accounts.
const (
	syncUser  = "4001"
	serveUser = "4002"
)

// excerpt returns the part of a manual that a pattern matches.
func excerpt(t *testing.T, page, pattern string) string {
	t.Helper()
	text, err := os.ReadFile("../../man/" + page)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(pattern).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s does not contain %s", page, pattern)
	}
	return string(m[1])
}

// as starts a program as another user.
func (s *site) as(uid uint32, caps []uintptr, program string, args ...string) (log func() string) {
	s.t.Helper()
	cmd := exec.Command(smtpd.Bin(program), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, AmbientCaps: caps}
	log = filterproc.LogFile(s.t, cmd)
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Log(log())
		}
	})
	return log
}

// TestManualCompanions follows the example in scanwatch-servers(7). Companions of milter-scanwatch,
// each with a separate user, enforce a ban in a firewall and in a block list.
func TestManualCompanions(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		require.Missing(t, "the test needs nft")
	}
	s := newSite(t)
	if err := os.Chmod(smtpd.Bin("."), 0o755); err != nil { // other users must be able to run the programs
		t.Fatal(err)
	}
	conf := excerpt(t, "scanwatch-servers.7", `(?s)(rundir "/run/scanwatch-milter"\n.*?)\.Ed\n`)
	conf = strings.NewReplacer("/run/scanwatch-milter", s.path("run"), "_swsync", syncUser, "_swserve", serveUser).Replace(conf)
	s.write("scanwatch.conf", "mode enforce\nstore \""+s.path("state")+"\"\n"+conf)
	for _, dir := range []string{"run", "state"} {
		if err := os.Mkdir(s.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(s.path(dir), 4003, 4003); err != nil {
			t.Fatal(err)
		}
	}
	s.write("nft", excerpt(t, "scanwatch.8", `(?s)(table inet filter \{\n.*?\n\}\n)\.Ed\n`))
	if out, err := exec.Command("nft", "-f", s.path("nft")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "filter").Run() })

	run := func(args ...string) string {
		out, err := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-f", s.path("scanwatch.conf")}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("scanwatch %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	if out := run("check"); strings.Contains(out, "warning") {
		t.Errorf("scanwatch check: %s", out)
	}
	s.as(4003, nil, "milter-scanwatch", "-v", "-f", s.path("scanwatch.conf"), "-l", "unix:"+s.path("run/milter.sock"))
	s.as(4001, []uintptr{unix.CAP_NET_ADMIN}, "scanwatch", "sync", "-f", s.path("scanwatch.conf"), "nftables")
	s.as(4002, nil, "scanwatch", "serve", "dns", "-f", s.path("scanwatch.conf"))
	filterproc.Eventually(t, "both companions", func() bool {
		out, _ := exec.Command(smtpd.Bin("scanwatch"), "-f", s.path("scanwatch.conf"), "status").CombinedOutput()
		return strings.Count(string(out), ": running, ") == 2
	})

	addr := excerpt(t, "scanwatch-servers.7", `# scanwatch ban --for 10m (\S+)\n`)
	name := excerpt(t, "scanwatch-servers.7", `# dig \+short -p 5353 @127.0.0.1 (\S+)\n`)
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:5353")
	}}
	listed := func() (fire, dns bool) {
		sets, err := exec.Command("nft", "list", "set", "inet", "filter", "scanwatch4").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, sets)
		}
		answers, _ := resolver.LookupHost(t.Context(), name)
		return strings.Contains(string(sets), addr+" "), slices.Contains(answers, "127.0.0.2")
	}
	for _, step := range []struct {
		args []string
		want bool
	}{{[]string{"ban", "--for", "10m", addr}, true}, {[]string{"unban", addr}, false}} {
		run(step.args...)
		filterproc.Eventually(t, step.args[0], func() bool {
			fire, dns := listed()
			return fire == step.want && dns == step.want
		})
	}
}
