//go:build !openbsd

package firewall

import "scanwatch/rules"

// Confine restricts the process on OpenBSD. On Linux, the service does that.
func Confine(*rules.Companion) error { return nil }
