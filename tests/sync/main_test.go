//go:build linux

// Package sync runs the filter and the companion `scanwatch sync` against the firewall in a
// network namespace. The companion runs as a separate user, and its only capability is
// CAP_NET_ADMIN.
package sync

import (
	"os"
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	if dirs := os.Getenv(envTrespass); dirs != "" {
		trespass(dirs)
		os.Exit(0)
	}
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
