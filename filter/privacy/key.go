package privacy

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// KeyFile is the name of the key file in the state directory (mode 0600).
//
// The key is in a separate file for three reasons. Operators may copy the other files
// or give a group access to them. The file state.db may be lost and created again. The
// running filter locks state.db.
const KeyFile = "key"

const keyBytes = 32

// ReadKey reads the key of the state directory dir.
func ReadKey(dir string) ([]byte, error) {
	name := filepath.Join(dir, KeyFile)
	// Opening a FIFO must not block, and symbolic links must not be followed.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("read the key of hashed mailboxes: %w", err)
	}
	defer f.Close()
	key := make([]byte, keyBytes+1)
	n, err := f.Read(key)
	if n != keyBytes {
		return nil, errors.Join(fmt.Errorf("read the key of hashed mailboxes: %s is not a key of %d bytes; if you remove it, a new key is created, but existing hashes can no longer be searched", name, keyBytes), err)
	}
	return key[:keyBytes], nil
}

// NewKey returns a random key.
func NewKey() []byte {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails
	return key
}

// SaveKey saves key in the state directory dir, and returns the key in dir. An existing
// key remains. All processes that call SaveKey at the same time receive the same key.
func SaveKey(dir string, key []byte) ([]byte, error) {
	have, err := ReadKey(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return have, err
	}
	if err := writeKey(dir, key); err != nil {
		return nil, fmt.Errorf("save the key of hashed mailboxes: %w", err)
	}
	return ReadKey(dir)
}

// writeKey writes the key. A key that another process has written remains.
func writeKey(dir string, key []byte) (err error) {
	f, err := os.CreateTemp(dir, KeyFile+"-*.new") // CreateTemp sets mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	switch err := os.Link(f.Name(), filepath.Join(dir, KeyFile)); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	return syncDir(dir)
}

// syncDir syncs dir. A power failure could otherwise remove the key, although records
// contain its hashes.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems do not support syncing a directory
		return err
	}
	return nil
}
