//go:build linux

// Package replaystreams runs the filter on recorded streams from all versions of smtpd.
package replaystreams

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
