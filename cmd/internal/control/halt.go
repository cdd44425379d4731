package control

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"scanwatch/rules"
)

// ModeFile is the file in the state directory that stores a halt. ModeFile contains the
// word "observe". If the halt is limited, ModeFile also contains the time at which the
// halt ends.
const ModeFile = "mode"

// maxModeFile is the maximum length of the file in bytes.
const maxModeFile = 100

// A Halt is a command of the operator to observe only, regardless of the configuration. A
// Halt survives restarts.
type Halt struct {
	On    bool
	Until time.Time // zero if only the operator ends the halt
}

// Active reports whether the halt applies at the time now.
func (h Halt) Active(now time.Time) bool { return h.On && (h.Until.IsZero() || now.Before(h.Until)) }

// ReadHalt reads the halt from a state directory. If the file is invalid, ReadHalt
// returns an unlimited halt, because a file exists only if the operator requested a halt.
func ReadHalt(dir string) (Halt, error) {
	// Do not follow a symbolic link, and do not block on a FIFO.
	f, err := os.OpenFile(filepath.Join(dir, ModeFile), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Halt{}, nil
	}
	h := Halt{On: true}
	if err != nil {
		return h, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxModeFile))
	words := strings.Fields(string(data))
	switch {
	case err != nil:
	case len(words) == 1 && words[0] == rules.Observe.String():
	case len(words) == 2 && words[0] == rules.Observe.String():
		h.Until, err = time.Parse(time.RFC3339, words[1])
	default:
		err = fmt.Errorf("%s: neither \"observe\" nor \"observe TIME\"", filepath.Join(dir, ModeFile))
	}
	return h, err
}
