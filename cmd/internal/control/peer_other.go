//go:build !linux && !openbsd && !freebsd

package control

import "errors"

// peerUID returns an error, because this system does not support companions.
func peerUID(int) (uint32, error) { return 0, errors.ErrUnsupported }
