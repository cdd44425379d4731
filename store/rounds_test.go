//go:build !long

package store

const (
	killRounds       = 40 // number of times that a test kills a writer
	sealKillRounds   = 12
	repairKillRounds = 8
	damageRounds     = 40
	flipEvery        = 5 // number of bytes between changed bits in TestFlippedBits; odd, so that the bit positions vary
	floodRecords     = 15_000
)
