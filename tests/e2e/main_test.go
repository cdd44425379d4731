//go:build linux

// Package e2e runs the filter on real OpenSMTPD servers and checks answers,
// records, log lines and delivered mail.
package e2e

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch", "scanwatch/tests/teefilter")
}
