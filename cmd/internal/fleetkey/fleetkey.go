// Package fleetkey reads and creates the key that all hosts of a fleet share. Only hosts with the
// same key produce the same hashes of names. Hosts reject messages with a different key.
package fleetkey

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"syscall"
)

// size is the length of a key in bytes.
const size = 32

// A Key is a fleet's key.
type Key struct{ secret [size]byte }

// New returns a random key.
func New() (k Key) {
	_, _ = rand.Read(k.secret[:]) // never fails
	return k
}

// Text returns the content of a key file.
func (k Key) Text() string { return hex.EncodeToString(k.secret[:]) + "\n" }

// maxFile is the maximum size of a key file in bytes.
const maxFile = 1024

// ReadFile reads a file that contains a secret. The file must be regular, only its owner may have
// write access, and it must not be accessible to all users.
func ReadFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // O_NONBLOCK: opening a FIFO would block until there is a writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", name)
	case info.Mode()&0o007 != 0:
		return nil, fmt.Errorf("all users can access %s; run chmod o= %s", name, name)
	case info.Mode()&0o020 != 0:
		return nil, fmt.Errorf("the group of %s can change it; run chmod g-w %s", name, name)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxFile)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Read reads a key from a file.
func Read(name string) (Key, error) {
	text, err := ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Key{}, fmt.Errorf("%w; copy the key of the other hosts, or create the first with scanwatch key", err)
	case err != nil:
		return Key{}, err
	}
	return parse(name, text)
}

func parse(name string, text []byte) (k Key, err error) {
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(b) != size {
		return k, fmt.Errorf("%s has no key of %d hexadecimal digits; create one with scanwatch key", name, 2*size)
	}
	copy(k.secret[:], b)
	return k, nil
}

// Create writes a new key to a new file that only the owner can read.
func Create(name string) (Key, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, os.ErrExist):
		return Key{}, fmt.Errorf("%w; scanwatch key --show prints its fingerprint; to replace the key on all hosts, remove the file first", err)
	case err != nil:
		return Key{}, err
	}
	k := New()
	_, err = f.WriteString(k.Text())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return Key{}, errors.Join(err, os.Remove(name))
	}
	return k, nil
}

// Purposes of Sum. A message authentication code for one purpose is not valid for another.
const (
	PurposeState = "state"       // hashes in the state
	PurposeBatch = "batch"       // messages to other hosts
	PurposeFacts = "facts"       // exported files
	purposePrint = "fingerprint" // shown to operators
)

// Hash returns a hash that computes message authentication codes (HMAC-SHA-256).
func (k Key) Hash(purpose string) hash.Hash {
	h := hmac.New(sha256.New, k.secret[:])
	fmt.Fprintf(h, "scanwatch %s\n", purpose)
	return h
}

// Sum returns the message authentication code (HMAC-SHA-256) of a message.
func (k Key) Sum(purpose string, message ...[]byte) (sum [sha256.Size]byte) {
	h := k.Hash(purpose)
	for _, m := range message {
		fmt.Fprintf(h, "%d\n", len(m))
		_, _ = h.Write(m)
	}
	h.Sum(sum[:0])
	return sum
}

// State returns the key for hashes in the state.
func (k Key) State() (key [16]byte) {
	sum := k.Sum(PurposeState)
	copy(key[:], sum[:])
	return key
}

// Fingerprint identifies the key without disclosing it.
func (k Key) Fingerprint() string {
	sum := k.Sum(purposePrint)
	return hex.EncodeToString(sum[:4]) + "-" + hex.EncodeToString(sum[4:8])
}
