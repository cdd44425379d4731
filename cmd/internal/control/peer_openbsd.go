package control

import "golang.org/x/sys/unix"

// peerUID returns the user of the process at the other end of a Unix socket, as
// getpeereid(3) does. SO_PEERCRED returns a struct sockpeercred. The members of the
// struct are numbers of 32 bits, and the user is the first member. Package unix has no
// function for this struct. The function for ICMPv6 filters reads up to eight numbers of
// 32 bits.
func peerUID(fd int) (uint32, error) {
	c, err := unix.GetsockoptICMPv6Filter(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return c.Filt[0], nil
}
