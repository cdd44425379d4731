// Framework is a filter that uses github.com/poolpOrg/OpenSMTPD-framework, for comparison with
// package filter. It writes every decoded event to stderr in the format of filter.Event.String, and
// answers every request with proceed.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	framework "github.com/poolpOrg/OpenSMTPD-framework/filter"
)

// event writes one line with the event, the session, and pairs of names and values.
func event(name string, id framework.Session, pairs ...string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", name, id)
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, " %s=%s", pairs[i], strconv.QuoteToASCII(pairs[i+1]))
	}
	fmt.Fprintln(os.Stderr, b.String())
}

func main() {
	in := framework.SMTP_IN
	type session = framework.Session
	type when = time.Time

	in.SessionAllocator(func() framework.SessionData { return nil })
	in.OnLinkConnect(func(_ when, id session, rdns, fcrdns string, src, dest net.Addr) {
		event("link-connect", id, "rdns", rdns, "fcrdns", fcrdns, "src", src.String(), "dest", dest.String())
	})
	in.OnLinkGreeting(func(_ when, id session, name string) { event("link-greeting", id, "hostname", name) })
	in.OnLinkIdentify(func(_ when, id session, method, name string) {
		event("link-identify", id, "method", method, "identity", name)
	})
	in.OnLinkTLS(func(_ when, id session, tls string) { event("link-tls", id, "tls", tls) })
	in.OnLinkAuth(func(_ when, id session, result, user string) {
		event("link-auth", id, "result", result, "user", user)
	})
	in.OnLinkDisconnect(func(_ when, id session) { event("link-disconnect", id) })
	in.OnTxReset(func(_ when, id session, msgid string) { event("tx-reset", id, "msgid", msgid) })
	in.OnTxBegin(func(_ when, id session, msgid string) { event("tx-begin", id, "msgid", msgid) })
	in.OnTxMail(func(_ when, id session, msgid, result, from string) {
		event("tx-mail", id, "msgid", msgid, "result", result, "address", from)
	})
	in.OnTxRcpt(func(_ when, id session, msgid, result, to string) {
		event("tx-rcpt", id, "msgid", msgid, "result", result, "address", to)
	})
	in.OnTxEnvelope(func(_ when, id session, msgid, evpid string) {
		event("tx-envelope", id, "msgid", msgid, "evpid", evpid)
	})
	in.OnTxData(func(_ when, id session, msgid, result string) {
		event("tx-data", id, "msgid", msgid, "result", result)
	})
	in.OnTxCommit(func(_ when, id session, msgid string, size int) {
		event("tx-commit", id, "msgid", msgid, "size", strconv.Itoa(size))
	})
	in.OnTxRollback(func(_ when, id session, msgid string) { event("tx-rollback", id, "msgid", msgid) })
	in.OnProtocolClient(func(_ when, id session, line string) { event("protocol-client", id, "line", line) })
	in.OnProtocolServer(func(_ when, id session, line string) { event("protocol-server", id, "line", line) })
	in.OnFilterResponse(func(_ when, id session, phase, decision string, param ...string) {
		pairs := []string{"phase", phase, "decision", decision}
		if len(param) > 0 {
			pairs = append(pairs, "param", strings.Join(param, "|"))
		}
		event("filter-response", id, pairs...)
	})
	in.OnTimeout(func(_ when, id session) { event("timeout", id) })

	proceed := framework.Proceed
	in.ConnectRequest(func(_ when, id session, rdns string, src net.Addr) framework.Response { return proceed() })
	in.HeloRequest(func(_ when, id session, name string) framework.Response {
		event("helo", id, "identity", name)
		return proceed()
	})
	in.EhloRequest(func(_ when, id session, name string) framework.Response {
		event("ehlo", id, "identity", name)
		return proceed()
	})
	in.MailFromRequest(func(_ when, id session, from string) framework.Response {
		event("mail-from", id, "args", from)
		return proceed()
	})
	in.RcptToRequest(func(_ when, id session, to string) framework.Response {
		event("rcpt-to", id, "args", to)
		return proceed()
	})
	framework.Dispatch()
}
