//go:build linux

package share

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
)

// manualBlock returns the literal block that follows a line in scanwatch(8).
func manualBlock(t *testing.T, after string) string {
	t.Helper()
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "\n"+after)
	_, rest, _ = strings.Cut(rest, "\n.Bd -literal -offset indent\n")
	block, _, ok := strings.Cut(rest, "\n.Ed\n")
	if !ok {
		t.Fatalf("scanwatch.8 has no block after %q", after)
	}
	return strings.ReplaceAll(block, `\e`, `\`) + "\n"
}

// TestManual runs a server with the configuration and the users in scanwatch(8). Hosts must share
// bans, and must not be able to change each other's keys.
func TestManual(t *testing.T) {
	t.Parallel()
	require.Program(t, "openssl")
	dir := t.TempDir()
	certificate(t, dir)
	users := exec.Command("sh", "-euc", manualBlock(t, "This script creates the file with the users, and a file for each password:"))
	users.Dir = dir
	if out, err := users.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	conf := filepath.Join(dir, "valkey.conf")
	text := strings.NewReplacer("192.0.2.10", "127.0.0.1", "tls-port 6379", fmt.Sprint("tls-port ", port), "/etc/valkey", dir).
		Replace(manualBlock(t, ".Pa /etc/valkey/valkey.conf :"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, port: port, args: []string{require.Program(t, "redis-server"), conf, "--dir", dir}}
	s.start()
	t.Cleanup(s.stop)
	secret, err := os.ReadFile(filepath.Join(dir, "mx1.password"))
	if err != nil {
		t.Fatal(err)
	}
	s.more = []string{"--tls", "--cacert", filepath.Join(dir, "cert.pem"), "--user", "mx1", "--pass", strings.TrimSpace(string(secret)), "--no-auth-warning"}
	f := newFleet(t, s)
	var hosts []*host
	for _, name := range []string{"mx1", "mx2", "mx3"} {
		password := filepath.Join(dir, name+".password")
		if err := os.Chown(password, companionUser, -1); err != nil {
			t.Fatal(err)
		}
		f.to = fmt.Sprintf("\"valkeys://127.0.0.1:%d\" login %q password %q ca %q", port, name, password, filepath.Join(dir, "cert.pem"))
		hosts = append(hosts, f.host(name, ""))
	}
	hosts[0].ban("198.51.100.1")
	for _, h := range hosts {
		filterproc.Eventually(t, h.name+" rejects the client", h.turnsAway("198.51.100.1"))
	}
	for _, h := range hosts {
		filterproc.Eventually(t, h.name+" has no problem", func() bool { return !strings.Contains(h.scanwatch("status"), "PROBLEM") })
	}
	hosts[2].scanwatch("unban", "198.51.100.1")
	for _, h := range hosts {
		filterproc.Eventually(t, h.name+" lets the client in", h.lets("198.51.100.1"))
	}
	password, err := os.ReadFile(filepath.Join(dir, "mx2.password"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command string
		allowed bool
	}{
		{"hset {scanwatch}:rows:mx1 a b", false},
		{"hset {scanwatch}:rows:mx2 a b", true},
		{"hdel {scanwatch}:rows:mx1 a", false},
		{"xadd {scanwatch}:log:mx1 * rows a", false},
		{"set {scanwatch}:alive:mx1 a", false},
		{"set {scanwatch}:hosts a", false},
		{"expire {scanwatch}:rows:mx1 1", false},
		{"del {scanwatch}:rows:mx2", false},
		{"srem {scanwatch}:hosts mx1", false},
		{"hscan {scanwatch}:rows:mx1 0", true},
		{"get other", false},
		{"flushall", false},
		{"config get maxmemory", false},
	} {
		args := append([]string{"-p", fmt.Sprint(port), "--tls", "--cacert", filepath.Join(dir, "cert.pem"), "--user", "mx2", "--pass", strings.TrimSpace(string(password)), "--no-auth-warning"}, strings.Fields(c.command)...)
		out, _ := exec.Command(require.Program(t, "redis-cli"), args...).CombinedOutput()
		if denied := strings.Contains(string(out), "NOPERM"); denied == c.allowed {
			t.Errorf("%s: %s", c.command, out)
		}
	}
}
