package control

import "golang.org/x/sys/unix"

// peerUID returns the user ID of the process at the other end of a Unix socket.
// LOCAL_PEERCRED is an option at level 0; see unix(4).
func peerUID(fd int) (uint32, error) {
	c, err := unix.GetsockoptXucred(fd, 0, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return c.Uid, nil
}
