package store

import (
	"errors"
	"io/fs"
	"slices"
	"time"

	"scanwatch/internal/safego"
)

// sealPause is the ratio between the pause after each block and the time spent on the
// block. Sealing therefore uses only a fifth of a processor and does not delay
// requests.
const sealPause = 4

// errStopped ends the sealing of a segment when the Writer is closed.
var errStopped = errors.New("the writer was closed")

// sealNext starts sealing the oldest finished segment if no segment is being sealed.
func (w *Writer) sealNext() {
	if w.days.sealing.Name == "" {
		w.startSeal()
	}
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	w.status.Sealing = w.days.sealing.Name
}

// startSeal seals a segment in a separate goroutine, so that neither commits nor callers
// wait. The budget already has room for the sealed segment.
func (w *Writer) startSeal() {
	if !w.o.Seal || w.sealFailed || w.k.directory == nil {
		return
	}
	all, err := w.k.directory.segments()
	if err != nil {
		return // the next commit reports the error
	}
	list := slices.DeleteFunc(finished(all, w.days.budget.clock.read(w.k.directory, all)), func(s Segment) bool {
		_, failed := w.unsealed[s.Name]
		return failed || s.Name == w.k.openName()
	})
	if len(list) == 0 {
		return
	}
	s := list[0]
	w.days.sealing, w.days.apart = s, []string{sealedName(s) + newSuffix}
	if !exists(w.k.directory, sealedName(s)) {
		w.days.apart = append(w.days.apart, sealedName(s))
	}
	d, o := w.k.directory, sealing{limit: min(s.Size, w.days.limit()), program: w.o.Program, now: w.o.Now(), pause: func(took time.Duration) error { return pauseSealing(w, took) }}
	safego.Go(w.k.log, "sealing", func() {
		runWithLowPriority()
		res := sealResult{Segment: s}
		err := safego.Run(func() (err error) {
			res, err = seal(d, s, o)
			return err
		})
		res.err = err
		w.sealed <- res
	})
}

// pauseSealing waits after a block, or returns an error if the Writer is closed.
func pauseSealing(w *Writer, took time.Duration) error {
	select {
	case <-w.k.stop:
		return errStopped
	case <-time.After(sealPause * took):
		return nil
	}
}

// sealDone handles the result of sealing a segment and starts sealing the next
// one. A segment that cannot be sealed remains unchanged until the next
// attempt, an hour later.
func (w *Writer) sealDone(r *sealResult) {
	w.days.sealing, w.days.apart = Segment{}, nil
	err := r.err
	switch {
	case err == nil:
		w.k.log.Info("segment sealed", "segment", r.Name, "records", r.records, "from", r.Size, "to", r.size)
		if r.cut > 0 {
			w.k.log.Error("corrupt records, original quarantined", "segment", r.Name, "records", r.cut)
		}
	case errors.Is(err, errStopped), errors.Is(err, fs.ErrNotExist): // prune has removed the segment
		err = nil
	case isDamaged(err):
		_ = w.k.quarantine(r.Name, err) // logged
		err = errors.Join(err, w.days.createLoss(r.Day))
	case errors.Is(err, ErrNewer), errors.Is(err, ErrOlder): // the error was logged when the file was opened
		w.unsealed[r.Name], err = true, nil
	default:
		w.unsealed[r.Name], w.sealFailed = false, !errors.Is(err, errNoRoom) // except for a lack of room, the error would affect all segments
		w.k.log.Warn("segment not sealed, retrying in an hour", "segment", r.Name, "err", err, safego.Stack(err))
	}
	setSealError(w, err)
	_ = safego.Run(func() error { return w.days.pruneAfter(nil) }) // the next commit reports any error
	w.sealNext()
}

func setSealError(w *Writer, err error) {
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	if w.status.SealError = ""; err != nil {
		w.status.SealError = err.Error()
	}
}

// sealStop waits briefly for sealing to end when the Writer is closed.
func (w *Writer) sealStop() {
	if w.days.sealing.Name == "" {
		return
	}
	select {
	case <-w.sealed:
	case <-time.After(closeWait): // the temporary file is removed at the next start
	}
}
