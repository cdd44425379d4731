//go:build !linux && !openbsd

package sandbox

// Client does nothing on this system.
func Client(dirs, sockets []string) *Report { return new(Report) }
