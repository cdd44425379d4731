package control

import "golang.org/x/sys/unix"

// peerUID returns the user ID of the process at the other end of a Unix socket; see
// SO_PEERCRED in unix(7).
func peerUID(fd int) (uint32, error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return c.Uid, nil
}
