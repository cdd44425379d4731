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
// The key has its own file for three reasons. Operators may copy the other files or make them
// readable to a group. state.db may be lost and created again. The running filter locks state.db.
const KeyFile = "key"

const keyBytes = 32

// ReadKey reads the key from the state directory.
func ReadKey(dir string) ([]byte, error) {
	name := filepath.Join(dir, KeyFile)
	// Do not block on a FIFO or follow a symbolic link.
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

// SaveKey saves a key in the state directory and returns the stored key. An existing key is not
// replaced. If several processes call SaveKey, they all get the same key.
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

// writeKey writes the key. If another process has written one, that key is kept.
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

// syncDir syncs dir. After a power failure, the key must not be missing while there are records
// with hashes that depend on it.
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
