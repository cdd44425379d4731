//go:build long

package store

const (
	killRounds       = 200
	sealKillRounds   = 200
	repairKillRounds = 50
	damageRounds     = 2000
	flipEvery        = 1
	floodRecords     = 30_000
)
