//go:build linux

package process

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

// journalScript runs the filter in a mount namespace with a separate journald, and prints the journal
// as JSON.
const journalScript = `mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal
/lib/systemd/systemd-journald 2>/dev/null & journald=$!
trap 'kill $journald' EXIT
until [ -S /run/systemd/journal/dev-log ]; do sleep 0.05; done
mount -t tmpfs tmpfs /mnt
mknod /mnt/null c 1 3
mknod /mnt/urandom c 1 9
ln -s /run/systemd/journal/dev-log /mnt/log
mount --bind /mnt /dev
"$FILTER" -S -s "$STATE" -f "$CONF" < "$LINES" > "$ANSWERS"
journalctl --sync
journalctl -t filter-scanwatch -o json --no-pager
`

// TestJournal checks that journald stores the lines of log syslog with their priorities. journalctl
// must select them as the manual describes.
func TestJournal(t *testing.T) {
	if os.Geteuid() != 0 {
		require.Missing(t, "a mount namespace needs root")
	}
	require.Program(t, "journalctl")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	now := time.Now().Unix()
	line := func(kind, event, fields string) string {
		return fmt.Sprintf("%s|0.7|%d.000001|smtp-in|%s|0000000000000001%s\n", kind, now, event, fields)
	}
	for name, text := range map[string]string{
		"conf": "mode enforce\nlog syslog verbose\nrule botnet phase helo match evidence botnet-helo disconnect ban 1h\n",
		"lines": "config|smtpd-version|7.6.0\nconfig|protocol|0.7\nconfig|smtp-session-timeout|300\nconfig|subsystem|smtp-in\nconfig|admd|mx.example.org\nconfig|ready\n" +
			line("report", "link-connect", "||error|203.0.113.7:4000|192.0.2.25:25") +
			line("report", "protocol-client", "|EHLO ylmf-pc") + line("report", "link-identify", "|EHLO|ylmf-pc") +
			line("filter", "ehlo", "|00000000000000ab|ylmf-pc") + line("report", "link-disconnect", ""),
	} {
		if err := os.WriteFile(file(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("unshare", "-m", "sh", "-euc", journalScript)
	cmd.Env = append(os.Environ(), "FILTER="+smtpd.Bin("filter-scanwatch"), "STATE="+file("state"), "CONF="+file("conf"), "LINES="+file("lines"), "ANSWERS="+file("answers"))
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s%s", err, out, problem.String())
	}
	found := map[string]string{} // priorities by the lines' first words
	for line := range strings.Lines(string(out)) {
		var entry struct {
			Message  string `json:"MESSAGE"`
			Priority string `json:"PRIORITY"`
			Facility string `json:"SYSLOG_FACILITY"`
		}
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		words := strings.Fields(entry.Message)
		if entry.Facility != "2" {
			t.Errorf("facility %s, want mail: %s", entry.Facility, entry.Message)
		}
		found[words[0]] = entry.Priority
	}
	for word, want := range map[string]string{"banned": "5", "finding": "6", "level=INFO": "6"} {
		if found[word] != want {
			t.Errorf("%s: priority %q, want %s; the journal has %v", word, found[word], want, found)
		}
	}
}
