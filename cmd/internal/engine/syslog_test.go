package engine

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestSyslog checks the priority of each kind of line, and that lines reach syslogd again
// after it restarts.
func TestSyslog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	if _, err := openSyslog(socket, "filter-scanwatch"); err == nil {
		t.Fatal("no error without a socket")
	}
	server := listen(t, socket)
	log, err := openSyslog(socket, "filter-scanwatch")
	if err != nil {
		t.Fatal(err)
	}
	const mail = 2 << 3
	read := func(priority int, text string) {
		t.Helper()
		b := make([]byte, 8<<10)
		n, err := server.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		want := regexp.MustCompile(`^<(\d+)>\w+ +\d+ [\d:]+ filter-scanwatch\[\d+\]: (.*)\n$`)
		if m := want.FindStringSubmatch(string(b[:n])); m == nil || m[1] != strconv.Itoa(mail|priority) || m[2] != text {
			t.Errorf("got %q, want priority %d and %q", b[:n], mail|priority, text)
		}
	}
	lines := []struct {
		priority int
		text     string
	}{
		{3, "level=ERROR msg=x"}, {4, "level=WARN msg=x"}, {4, "warning: 5 log lines lost"}, {6, "level=INFO msg=stopped"},
		{5, "banned src=192.0.2.1 rule=x"}, {5, "session decision=reject src=192.0.2.1"}, {6, "session decision=proceed src=192.0.2.1"},
		{6, "finding evidence=scanner"}, {5, "session would=reject helo=\"level=ERROR \""},
	}
	var all []string
	for _, l := range lines {
		all = append(all, l.text+"\n")
	}
	if _, err := log.Write([]byte(strings.Join(all, ""))); err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		read(l.priority, l.text)
	}
	server.Close()
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Write([]byte("lost\n")); err != nil {
		t.Error(err)
	}
	server = listen(t, socket)
	if _, err := log.Write([]byte("again\n")); err != nil {
		t.Error(err)
	}
	read(5, "again")
}

func listen(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
