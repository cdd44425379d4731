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

// ModeFile is the file in the state directory that contains a halt: the word observe
// and, unless the halt is unlimited, the time at which it ends.
const ModeFile = "mode"

// maxModeFile is the maximum length of the file in bytes.
const maxModeFile = 100

// A Halt is the operator's command to observe only, regardless of the configuration. It
// survives restarts.
type Halt struct {
	On    bool
	Until time.Time // zero if only the operator ends the halt
}

// Active reports whether the halt applies at the time now.
func (h Halt) Active(now time.Time) bool { return h.On && (h.Until.IsZero() || now.Before(h.Until)) }

// ReadHalt reads the halt from a state directory. If the file is invalid, it returns an
// unlimited halt, because the file shows that the operator requested a halt.
func ReadHalt(dir string) (Halt, error) {
	// Opening a FIFO must not block, and symbolic links must not be followed.
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
