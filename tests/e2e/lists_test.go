//go:build linux

package e2e

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"scanwatch/filter/lookup"
)

func shippedRows(t *testing.T) []*lookup.Row {
	t.Helper()
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	return lists.Rows()
}

func parseASN(s string) (uint32, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "AS"), 10, 32)
	return uint32(n), err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
