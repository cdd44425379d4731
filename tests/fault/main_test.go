//go:build linux

// Package fault breaks the environment of the filter: disks, file descriptors, memory,
// clock, log and process. The filter must answer every request, and must continue to
// record after the repair.
package fault

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch", "scanwatch/tests/teefilter")
}
