//go:build !long

package store

const (
	killRounds       = 40 // of a writer
	sealKillRounds   = 12
	repairKillRounds = 8
	damageRounds     = 80
)
