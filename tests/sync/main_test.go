//go:build linux

// Package sync runs the filter and its companion `scanwatch sync` with the firewall of a
// network namespace. The companion has a user of its own and no capability but
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
