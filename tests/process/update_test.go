//go:build linux

package process

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/smtpd"
)

// TestUpdate checks that the program downloads a list in its sandbox when it runs as the timer's
// user.
func TestUpdate(t *testing.T) {
	const user = 65534
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "203.0.113.1\n")
	}))
	defer server.Close()
	dir, err := os.MkdirTemp("", "update-") // accessible to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	conf, authority := filepath.Join(dir, "scanwatch.conf"), filepath.Join(dir, "ca.pem")
	text := fmt.Sprintf("store \"%s/state\"\ntable <a> file \"%s/feeds/a.txt\" format addresses url \"%s/list\"\nrule r phase connect match src <a> disconnect\n",
		dir, dir, server.URL)
	feeds := filepath.Join(dir, "feeds")
	err = errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(smtpd.Bin("scanwatch")), 0o755), os.Mkdir(feeds, 0o755), os.Chown(feeds, user, user),
		os.WriteFile(conf, []byte(text), 0o644),
		os.WriteFile(authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(smtpd.Bin("scanwatch"), "-f", conf, "update")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+authority)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "updated") {
		t.Fatalf("update: %v\n%s", err, out)
	}
}
