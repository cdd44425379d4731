//go:build linux

// Package sync runs the filter and the companion `scanwatch sync` against a firewall in a network
// namespace. The companion runs as a separate user, with CAP_NET_ADMIN as its only capability.
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
