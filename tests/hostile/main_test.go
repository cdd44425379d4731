//go:build linux

// Package hostile attacks real OpenSMTPD servers. smtpd and the filter must survive, and every
// request must have exactly one answer.
package hostile

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch", "scanwatch/tests/teefilter")
}
