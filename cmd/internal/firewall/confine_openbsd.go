package firewall

import (
	"fmt"

	"golang.org/x/sys/unix"

	"scanwatch/rules"
)

// Confine restricts the process to what a Keeper needs. Programs that it runs are not
// restricted, because pfctl(8) must open /dev/pf.
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
