package firewall

import (
	"fmt"

	"golang.org/x/sys/unix"

	"scanwatch/rules"
)

// Confine restricts the process to the needs of a Keeper. The programs that it starts
// have no restrictions: pfctl(8) opens /dev/pf.
func Confine(c *rules.Companion) error {
	promises := "stdio rpath unix proc exec"
	if c.Target == "file" {
		promises += " wpath cpath fattr"
	}
	if err := unix.PledgePromises(promises); err != nil {
		return fmt.Errorf("pledge %s: %w", promises, err)
	}
	return nil
}
