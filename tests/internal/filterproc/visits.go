//go:build linux

package filterproc

import (
	"fmt"
	"strings"
	"time"
)

// Visits generates complete sessions from different addresses, each with one request and one
// rejected recipient.
type Visits struct{ N int }

const FirstVisit = 1795219327 // seconds since 1970

// Next returns the lines of a session and the answer to expect.
func (v *Visits) Next(at time.Time) (lines, answer string) {
	v.N++
	id := fmt.Sprintf("%016x", 1000+v.N)
	src := fmt.Sprintf("198.%d.%d.%d", 18+v.N>>16&1, v.N>>8&255, v.N&255)
	var b strings.Builder
	for i, rest := range []string{
		"link-connect|" + id + "|<unknown>|fail|" + src + ":4000|192.0.2.25:25",
		"protocol-server|" + id + "|220 mx.example.org ESMTP OpenSMTPD",
		"protocol-client|" + id + "|EHLO mail.example.net",
		"link-identify|" + id + "|EHLO|mail.example.net",
		"protocol-client|" + id + "|RCPT TO:<nobody@example.org>",
		"tx-rcpt|" + id + "|31f211ba|permfail|nobody@example.org",
		"protocol-server|" + id + "|550 Invalid recipient",
		"link-disconnect|" + id,
	} {
		us := at.UnixMicro() + int64(i)
		fmt.Fprintf(&b, "report|0.7|%d.%06d|smtp-in|%s\n", us/1e6, us%1e6, rest)
		if i == 2 {
			fmt.Fprintf(&b, "filter|0.7|%d.%06d|smtp-in|ehlo|%s|00000000000000ff|mail.example.net\n", us/1e6, us%1e6, id)
		}
	}
	return b.String(), "filter-result|" + id + "|00000000000000ff|proceed\n"
}
