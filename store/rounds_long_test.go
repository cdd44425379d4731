//go:build long

package store

const (
	killRounds       = 200
	sealKillRounds   = 200
	repairKillRounds = 50
	damageRounds     = 2000
)
