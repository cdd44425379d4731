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

// KeyFile is the name of the key's file in the state directory (mode 0600).
//
// It is a file of its own because the others may be read by a group, and copied
// for others to look at; because what is in state.db may be lost and made anew;
// and because the filter holds that one locked while it runs.
const KeyFile = "key"

const keyBytes = 32

// ReadKey reads the key of the state directory dir.
func ReadKey(dir string) ([]byte, error) {
	name := filepath.Join(dir, KeyFile)
	// A FIFO there must not make us wait, nor a link lead elsewhere.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("read the key of hashed addresses: %w", err)
	}
	defer f.Close()
	key := make([]byte, keyBytes+1)
	n, err := f.Read(key)
	if n != keyBytes {
		return nil, errors.Join(fmt.Errorf("read the key of hashed addresses: %s has not %d bytes; remove it to have a new one made, what was hashed cannot be found then", name, keyBytes), err)
	}
	return key[:keyBytes], nil
}

// NewKey makes a key.
func NewKey() []byte {
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails
	return key
}

// SaveKey makes key the one of the state directory dir, unless there is one already,
// and returns the one that it has then. Several processes may do so at once: all
// get the same one.
func SaveKey(dir string, key []byte) ([]byte, error) {
	have, err := ReadKey(dir)
	if !errors.Is(err, fs.ErrNotExist) {
		return have, err
	}
	if err := writeKey(dir, key); err != nil {
		return nil, fmt.Errorf("save the key of hashed addresses: %w", err)
	}
	return ReadKey(dir)
}

// writeKey writes a key, unless another process has done so meanwhile.
func writeKey(dir string, key []byte) (err error) {
	f, err := os.CreateTemp(dir, KeyFile+"-*.new") // mode 0600
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

// syncDir makes a new name in dir last. Without it a power failure may take the key,
// and leave what was hashed with it.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems cannot
		return err
	}
	return nil
}
