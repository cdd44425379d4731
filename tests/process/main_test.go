//go:build linux

// Package process runs the filter without a server: the test writes the lines
// of smtpd into a socket and reads the answers.
package process

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
