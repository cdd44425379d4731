package control

import "golang.org/x/sys/unix"

// peerUID returns the user of the other side of a Unix socket, as getpeereid(3) does.
// SO_PEERCRED returns struct sockpeercred, whose members are numbers of 32 bits, the
// user first. Package unix has no such function; the one for ICMPv6 filters reads up
// to eight numbers of 32 bits.
func peerUID(fd int) (uint32, error) {
	c, err := unix.GetsockoptICMPv6Filter(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return c.Filt[0], nil
}
