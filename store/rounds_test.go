//go:build !long

package store

const (
	killRounds       = 40 // number of times that a test kills a writer
	sealKillRounds   = 12
	repairKillRounds = 8
	damageRounds     = 80
)
