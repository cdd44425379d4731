//go:build !openbsd

package firewall

import "scanwatch/rules"

// Confine does nothing. On Linux, the service manager restricts the process.
func Confine(*rules.Companion) error { return nil }
