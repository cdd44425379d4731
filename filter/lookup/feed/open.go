package feed

import (
	"fmt"
	"os"
	"syscall"
)

// Open opens a regular file for reading. Open returns an error for any other file, because reading
// from a FIFO or device may block or never end.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("open %s: is not a regular file", path)
	}
	return f, nil
}
