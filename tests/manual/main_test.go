//go:build linux

// Package manual compares the manual pages with the programs.
package manual

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/milter-scanwatch", "scanwatch/cmd/scanwatch")
}
