//go:build linux

// Package fault tests the filter when the disk, the clock, the log or a process fails, or when file
// descriptors or memory run out. The filter must answer every request. After the failure, it must
// record sessions again.
package fault

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch", "scanwatch/tests/teefilter")
}
