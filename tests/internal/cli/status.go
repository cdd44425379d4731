//go:build linux

package cli

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"scanwatch/tests/internal/smtpd"
)

// StoreStatus is the part of the status that describes the disk.
type StoreStatus struct {
	Store struct {
		Error            string
		Added, Committed int
		Dropped          map[string]int
	}
	State struct{ Error string }
}

// StatusOf returns a running filter's status.
func StatusOf(t *testing.T, dir string) (s StoreStatus) {
	t.Helper()
	Decode(t, Run(t, dir, "status", "--json"), &s)
	return s
}

// ReadStatus returns the status of a filter that may not be listening yet.
func ReadStatus(dir string) (s StoreStatus, err error) {
	out, err := exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "status", "--json").Output()
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	return s, err
}

// Listens returns a function that reports whether the filter answers on its control
// socket.
func Listens(dir string) func() bool {
	return func() bool { _, err := ReadStatus(dir); return err == nil }
}

// Flushes returns a function that reports whether scanwatch flush succeeds.
func Flushes(dir string) func() bool {
	return func() bool { return exec.Command(smtpd.Bin("scanwatch"), "-s", dir, "flush").Run() == nil }
}

// HasStoreError returns a function that reports whether the store's error contains text.
func HasStoreError(dir, text string) func() bool {
	return func() bool { s, err := ReadStatus(dir); return err == nil && strings.Contains(s.Store.Error, text) }
}
