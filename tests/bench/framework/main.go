// Framework is a minimal filter based on github.com/poolpOrg/OpenSMTPD-framework.
// It answers every request with proceed. Its arguments are registrations such as
// report|smtp-in|link-connect.
package main

import (
	"log"
	"net"
	"os"
	"time"

	framework "github.com/poolpOrg/OpenSMTPD-framework/filter"
)

func main() {
	in := framework.SMTP_IN
	type (
		when    = time.Time
		session = framework.Session
		answer  = framework.Response
	)
	proceed := framework.Proceed
	text := func(when, session, string) {}
	addr := func(when, session, string, string, string) {}
	ask := func(when, session, string) answer { return proceed() }
	plain := func(when, session) answer { return proceed() }
	register := map[string]func(){
		"report|smtp-in|link-connect": func() {
			in.OnLinkConnect(func(when, session, string, string, net.Addr, net.Addr) {})
		},
		"report|smtp-in|link-greeting":   func() { in.OnLinkGreeting(text) },
		"report|smtp-in|link-identify":   func() { in.OnLinkIdentify(func(when, session, string, string) {}) },
		"report|smtp-in|link-tls":        func() { in.OnLinkTLS(text) },
		"report|smtp-in|link-auth":       func() { in.OnLinkAuth(func(when, session, string, string) {}) },
		"report|smtp-in|link-disconnect": func() { in.OnLinkDisconnect(func(when, session) {}) },
		"report|smtp-in|tx-reset":        func() { in.OnTxReset(text) },
		"report|smtp-in|tx-begin":        func() { in.OnTxBegin(text) },
		"report|smtp-in|tx-mail":         func() { in.OnTxMail(addr) },
		"report|smtp-in|tx-rcpt":         func() { in.OnTxRcpt(addr) },
		"report|smtp-in|tx-envelope":     func() { in.OnTxEnvelope(func(when, session, string, string) {}) },
		"report|smtp-in|tx-data":         func() { in.OnTxData(func(when, session, string, string) {}) },
		"report|smtp-in|tx-commit":       func() { in.OnTxCommit(func(when, session, string, int) {}) },
		"report|smtp-in|tx-rollback":     func() { in.OnTxRollback(text) },
		"report|smtp-in|protocol-client": func() { in.OnProtocolClient(text) },
		"report|smtp-in|protocol-server": func() { in.OnProtocolServer(text) },
		"report|smtp-in|filter-response": func() {
			in.OnFilterResponse(func(when, session, string, string, ...string) {})
		},
		"report|smtp-in|timeout":   func() { in.OnTimeout(func(when, session) {}) },
		"filter|smtp-in|connect":   func() { in.ConnectRequest(func(when, session, string, net.Addr) answer { return proceed() }) },
		"filter|smtp-in|helo":      func() { in.HeloRequest(ask) },
		"filter|smtp-in|ehlo":      func() { in.EhloRequest(ask) },
		"filter|smtp-in|mail-from": func() { in.MailFromRequest(ask) },
		"filter|smtp-in|rcpt-to":   func() { in.RcptToRequest(ask) },
		"filter|smtp-in|data":      func() { in.DataRequest(plain) },
		"filter|smtp-in|commit":    func() { in.CommitRequest(plain) },
		"filter|smtp-in|rset":      func() { in.RsetRequest(plain) },
		"filter|smtp-in|noop":      func() { in.NoopRequest(plain) },
	}
	in.SessionAllocator(func() framework.SessionData { return nil })
	for _, arg := range os.Args[1:] {
		f, ok := register[arg]
		if !ok {
			log.Fatalf("cannot register %s", arg)
		}
		f()
	}
	framework.Dispatch()
}
