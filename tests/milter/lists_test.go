//go:build linux

package milter

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
	"scanwatch/tests/internal/require"
)

// TestFollowHeldList checks that scanwatch follow does not ban a mailing list with former members if
// Postfix holds its messages, so that the log shows the outcome of accepted recipients later than
// that of rejected ones. A harvest of the same domain is banned.
func TestFollowHeldList(t *testing.T) {
	require.Full(t)
	s := newSite(t)
	s.services = "qmgr unix n - n 300 1 qmgr\ndiscard unix - - n - - discard\nbounce unix - - n - 0 bounce\ndefer unix - - n - 0 bounce\n"
	s.write("members.regexp", "/^m[0-9]+@second\\.example$/ x\n")
	s.write("held.regexp", "/^X-Hold:/ HOLD\n")
	s.startPostfix(withPorts + "virtual_mailbox_domains = second.example\nvirtual_mailbox_maps = regexp:" + s.path("members.regexp") +
		"\nvirtual_transport = discard:\nheader_checks = regexp:" + s.path("held.regexp") + "\n")
	s.write("follow.conf", "mode enforce\nlog verbose\nrule harvest-end phase end match evidence harvest ban 1h\n"+
		"rule unknown-end phase end match count unknown-recipient > 5 in 1h by src ban 10m\n")
	if err := os.Mkdir(s.path("followed"), 0o750); err != nil {
		t.Fatal(err)
	}
	follow := s.follow("follow.conf", "postfix", "maillog")
	for i := range 12 { // the log shows which domains are local
		(&scenario{src: "198.51.100.50", lines: []string{"EHLO mail.partner.example", "MAIL FROM:<a@partner.example>", fmt.Sprintf("RCPT TO:<m%d@second.example>", i),
			"DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT"}}).play(t)
	}
	for i := range 240 {
		lines := []string{"EHLO mail.lists.example", fmt.Sprintf("MAIL FROM:<list+%d@lists.example>", i)}
		if i%12 == 5 {
			lines = append(lines, fmt.Sprintf("RCPT TO:<gone%d@second.example>", i))
		} else {
			lines = append(lines, fmt.Sprintf("RCPT TO:<m%d@second.example>", i), "DATA", "Subject: x\r\nX-Hold: y\r\n\r\nx\r\n.")
		}
		(&scenario{src: "198.51.100.52", lines: append(lines, "QUIT")}).play(t)
	}
	lines := []string{"EHLO mail.sender.example", "MAIL FROM:<a@sender.example>"}
	for i := range 20 {
		lines = append(lines, fmt.Sprintf("RCPT TO:<word%d@second.example>", i))
	}
	(&scenario{src: "198.51.100.57", lines: append(lines, "QUIT")}).play(t)
	bans := func() string { return cli.Run(t, s.path("followed"), "bans") }
	filterproc.Eventually(t, "the harvest is banned", func() bool { return strings.Contains(bans(), "198.51.100.57") })
	_ = follow.Process.Signal(syscall.SIGTERM) // records the sessions that wait for messages
	if err := follow.Wait(); err != nil {
		t.Error(err)
	}
	if got := bans(); strings.Contains(got, "198.51.100.52") {
		t.Errorf("the list is banned\n%s", got)
	}
	if n := strings.Count(cli.Run(t, s.path("followed"), "dump"), `"address":"gone`); n == 0 {
		t.Error("no rejected recipients of the list are recorded")
	}
}
