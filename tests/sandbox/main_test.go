//go:build linux

// Package sandbox runs the filter in its sandbox, and makes it access all files that it needs.
package sandbox

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
