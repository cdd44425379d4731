//go:build linux

// Package process runs the filter without a mail server. The tests act as smtpd: they write lines
// to a socket and read the answers.
package process

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
