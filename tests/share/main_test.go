//go:build linux

// Package share runs filters with the companion `scanwatch share` and a real Valkey or
// Redis server.
package share

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
