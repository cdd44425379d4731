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

// ModeFile is the name of the file that saves a halt in the state directory. The file
// consists of the word "observe", followed by the end time if the halt is limited.
const ModeFile = "mode"

// maxModeFile is the maximum length of ModeFile in bytes.
const maxModeFile = 100

// A Halt is an operator's command to observe only, regardless of the configured mode. A Halt
// survives restarts.
type Halt struct {
	On    bool
	Until time.Time // zero if the halt lasts until the operator ends it
}

// Active reports whether h is in effect at the given time.
func (h Halt) Active(now time.Time) bool { return h.On && (h.Until.IsZero() || now.Before(h.Until)) }

// ReadHalt reads the halt in a state directory. If the file is invalid, ReadHalt returns
// an unlimited halt, because the file exists only if the operator requested a halt.
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
