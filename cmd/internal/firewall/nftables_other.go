//go:build !linux

package firewall

import (
	"errors"

	"scanwatch/rules"
)

func openNFTables(*rules.Companion) (*target, error) {
	return nil, errors.New("target nftables: this system has no nftables")
}
