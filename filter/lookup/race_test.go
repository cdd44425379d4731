//go:build race

package lookup

// With the race detector, sync.Pool drops items at random, which makes package regexp
// allocate.
const raceDetector = true
