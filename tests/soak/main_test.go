//go:build linux

// Package soak runs the filter under load for a long time and checks disk,
// memory and records.
package soak

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch", "scanwatch/tests/teefilter")
}
