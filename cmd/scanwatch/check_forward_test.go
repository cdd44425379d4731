package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckSyslogSocket checks that scanwatch check warns about a missing syslog socket, and about
// a file that is not a socket.
func TestCheckSyslogSocket(t *testing.T) {
	dir := t.TempDir()
	conf, file, socket := filepath.Join(dir, "conf"), filepath.Join(dir, "file"), filepath.Join(dir, "log")
	l, err := net.ListenPacket("unixgram", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing"): "missing: no such file",
		file:                          file + " is not a socket",
		socket:                        "",
	} {
		if err := os.WriteFile(conf, []byte("companion forward user root to syslog \""+path+"\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var errs bytes.Buffer
		program(&errs).main([]string{"check", conf}, null)
		if got := errs.String(); strings.Contains(got, "socket of syslog") != (want != "") || !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %q", path, got, want)
		}
	}
}
