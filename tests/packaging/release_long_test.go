//go:build linux && long

package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/tests/internal/require"
)

// TestArchiveBuild checks that the oldest suitable Go builds the programs from the source
// archive, without a network and without a module cache.
func TestArchiveBuild(t *testing.T) {
	require.Full(t)
	needs(t, "make", "openssl", "sha256sum", "unshare")
	dist := filepath.Join(repository(t), "dist")
	run(t, filepath.Dir(dist), nil, "make", "-s", "dist")
	top := unpacked(t, dist)
	root, err := exec.Command("env", "GOTOOLCHAIN="+oldest(t), "go", "env", "GOROOT").Output()
	if err != nil {
		require.Missing(t, "%s cannot be downloaded: %v", oldest(t), err)
	}
	env := []string{"GOTOOLCHAIN=local", "GOFLAGS=-mod=vendor", "GOPROXY=off", "GOMODCACHE=" + t.TempDir(),
		"PATH=" + filepath.Join(strings.TrimSpace(string(root)), "bin") + ":" + os.Getenv("PATH")}
	run(t, top, env, "unshare", "-n", "make", "-s")
	if got := run(t, top, env, "./scanwatch", "-V"); got != "scanwatch "+version+"\n" {
		t.Errorf("the program prints %q", got)
	}
	if got := run(t, top, env, "go", "version", "scanwatch"); got != "scanwatch: "+oldest(t)+"\n" {
		t.Errorf("the program was built with another Go: %s", got)
	}
}
