//go:build race

package lookup

// With the race detector, sync.Pool drops items at random, so that package regexp
// allocates.
const raceDetector = true
