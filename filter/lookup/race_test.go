//go:build race

package lookup

// The race detector makes sync.Pool forget at random, so that package regexp
// allocates.
const raceDetector = true
