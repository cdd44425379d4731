package store

import (
	"context"
	"fmt"

	"go.etcd.io/bbolt"
)

const (
	compactEvery = 20 // number of commits between measurements of the free space, each of which reads the whole file
	compactBatch = 4 << 20
)

// oversized reports whether the file exceeds the maximum size because it was written with a larger
// maximum. Until the file is compacted, the budget reserves no room for the excess.
func (s *State) oversized() bool { return s.k.size() > s.o.MaxSize }

// maxSize returns the maximum size of the file after the batch has been committed. bbolt writes
// changed pages to new locations, and each entry may change a different page.
func (s *State) maxSize() int64 {
	const page = 8 << 10 // a leaf page and its share of the parent pages
	grow := int64(allocSize)
	for i := range s.batch {
		grow += page + int64(len(s.batch[i].Key)+len(s.batch[i].Value))
	}
	file := s.k.size()
	return max(file, min(file+grow, s.o.MaxSize))
}

// compact replaces the file with a copy that has no free pages, if the copy is small enough. Random
// additions and deletions can leave three quarters of a file unused, and bbolt never returns free
// pages to the system. The old and new files together do not exceed the maximum size of a file,
// unless the old file alone already exceeds it.
func (s *State) compact() error {
	size := s.k.size()
	if size < s.o.MaxSize/8*5 {
		return nil
	}
	if s.wait--; s.wait > 0 {
		return nil
	}
	s.wait = compactEvery
	used, err := usedBytes(s.k.open)
	if err != nil {
		return unlessDamaged(err)
	}
	room := used/8*10 + 1<<20 // bbolt fills pages to 90 percent
	over := size > s.o.MaxSize
	if room > s.o.MaxSize || !over && size+room > s.o.MaxSize {
		return nil
	}
	if s.o.Room != nil && !over {
		if err := s.o.Room(size + room); err != nil {
			return err
		}
	}
	return unlessDamaged(s.useCopy())
}

// useCopy copies the rows to a new file and switches to it.
func (s *State) useCopy() error {
	size := s.k.size()
	seg, err := s.copyFile()
	if err != nil {
		return err
	}
	s.k.release(nil)
	s.k.use(seg)
	s.was, err = seg.file.Stat()
	if err != nil {
		return fmt.Errorf("check the compacted file: %w", err)
	}
	s.wait = 0
	s.k.log.Info("state.db compacted", "file", s.path, "from", size, "to", s.was.Size())
	return s.k.directory.sync()
}

// Compact writes all changes and copies the rows to a new file, so that no deleted row
// remains on disk.
func (s *State) Compact(ctx context.Context) error {
	return s.k.request(ctx, s.compacts, "compact")
}

// compactNow does the work of Compact in s's goroutine. The old and new files
// together do not exceed the maximum size of a file.
func (s *State) compactNow() error {
	if err := s.write(); err != nil {
		return err
	}
	used, err := usedBytes(s.k.open)
	if err != nil {
		return err
	}
	both := s.k.size() + used/8*10 + 1<<20
	if both > s.o.MaxSize {
		return fmt.Errorf("compact %s: %w for a copy; the deleted rows will be overwritten later", s.path, errNoRoom)
	}
	if s.o.Room != nil {
		if err := s.o.Room(both); err != nil {
			return err
		}
	}
	return s.useCopy()
}

// usedBytes returns the number of bytes in use in s's pages.
func usedBytes(s *segment) (used int64, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			st := b.Stats()
			used += int64(st.LeafInuse + st.BranchInuse)
			return nil
		})
	})
	return used, err
}

// copyFile copies the rows to a new file and renames it to the open file's
// name.
func (s *State) copyFile() (*segment, error) {
	f, err := s.k.directory.create(StateFile + newSuffix)
	if err != nil {
		return nil, err
	}
	seg, err := newSegment(Segment{Name: StateFile}, f, s.o.MaxSize)
	if err != nil {
		_ = s.k.directory.remove(StateFile + newSuffix)
		return nil, err
	}
	err = guard(func() error { return bbolt.Compact(seg.db, s.k.open.db, compactBatch) })
	if isDamaged(err) {
		s.k.open.abandon()
	}
	if err == nil {
		err = s.k.directory.rename(StateFile+newSuffix, StateFile)
	}
	if err != nil {
		seg.release(err)
		_ = s.k.directory.remove(StateFile + newSuffix)
		return nil, err
	}
	return seg, nil
}

// unlessDamaged returns err, or nil for a corruption error. The next commit reports the corruption.
func unlessDamaged(err error) error {
	if isDamaged(err) {
		return nil
	}
	return err
}
