//go:build linux

// Package fault tests faults in the filter's environment. The disk, the clock, the log or the
// process fails, or file descriptors or memory run out. The filter must answer every request,
// and must record sessions again once the fault has ended.
package fault

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch", "scanwatch/tests/teefilter")
}
