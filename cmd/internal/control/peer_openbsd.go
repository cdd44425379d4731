package control

import "golang.org/x/sys/unix"

// peerUID returns the user ID of the process at the other end of a Unix socket, like getpeereid(3).
// SO_PEERCRED fills a struct sockpeercred, which consists of 32-bit numbers and starts with the
// user ID. Package unix does not define this struct. Its function for ICMPv6 filters is used
// instead, because it reads up to eight 32-bit numbers.
func peerUID(fd int) (uint32, error) {
	c, err := unix.GetsockoptICMPv6Filter(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return c.Filt[0], nil
}
