package memory

import (
	"encoding/hex"
	"testing"
)

// TestOneKeyOfARow checks that a row has only one valid key. If it had several, hosts
// would keep different rows.
func TestOneKeyOfARow(t *testing.T) {
	m := NewMerger()
	for key, want := range map[string]bool{
		"20c6336407":                         true,  // 198.51.100.7/32
		"18c6336400":                         true,  // 198.51.100.0/24
		"18c6336407":                         false, // with bits of the host
		"00c6336407":                         false,
		"4020010db8000100020000000000000000": true,  // a /64
		"4120010db8000100020000000000000000": false, // a /65
		"7f20010db8000100020000000000000002": false, // a /127
		"8020010db8000100020000000000000002": true,  // an address
		"8020010db8000100020000000000000000": false, // the first address of a /64
		"4020010db8000100020000000000000001": false,
		"3020010db8000100000000000000000000": true, // a /48
		"3020010db8000100020000000000000000": false,
		"8000000000000000000000ffffc6336407": false, // 198.51.100.7 in IPv6
		"6000000000000000000000ffff00000000": false,
		"4000000000000000000000000000000000": false, // would be 0.0.0.0
	} {
		b, err := hex.DecodeString(key)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.ValidKey(BansBucket, b); got != want {
			t.Errorf("%s: valid %t, want %t", key, got, want)
		}
	}
}
