//go:build linux

// Package process runs the filter without a server. The tests write smtpd's lines to a socket and
// read the answers.
package process

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
