package control

import "golang.org/x/sys/unix"

// peerUID returns the user of the process at the other end of a Unix socket.
// LOCAL_PEERCRED in unix(4) is an option of level 0.
func peerUID(fd int) (uint32, error) {
	c, err := unix.GetsockoptXucred(fd, 0, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return c.Uid, nil
}
