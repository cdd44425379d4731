//go:build !linux && !openbsd && !freebsd

package control

import "errors"

// peerUID is not available on this system, so companions are not supported.
func peerUID(int) (uint32, error) { return 0, errors.ErrUnsupported }
