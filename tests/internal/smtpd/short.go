//go:build linux && !long

package smtpd

// Long reports whether the tests run with the build tag long.
const Long = false
