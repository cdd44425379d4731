//go:build linux

// Package sandbox runs the filter in its sandbox with all file accesses that
// the filter needs.
package sandbox

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
