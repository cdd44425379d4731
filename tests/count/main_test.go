//go:build linux

// Package count counts the sessions in a generated stream from smtpd, and compares the numbers with
// the output of scanwatch(8). The two counts are independent, because the package imports no code
// from the filter, the store or the reports.
package count

import (
	"testing"

	"scanwatch/tests/internal/smtpd"
)

func TestMain(m *testing.M) {
	smtpd.Main(m, "scanwatch/cmd/filter-scanwatch", "scanwatch/cmd/scanwatch")
}
