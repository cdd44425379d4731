//go:build !linux && !openbsd && !freebsd

package control

import "errors"

// peerUID is not available, so that there are no companions.
func peerUID(int) (uint32, error) { return 0, errors.ErrUnsupported }
