//go:build race

package lookup

// With the race detector, sync.Pool drops items at random. Package regexp must then allocate new
// ones.
const raceDetector = true
