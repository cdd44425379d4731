package simulate

// This file simulates a single session, including its client and smtpd.

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	"scanwatch/filter/smtpd"
)

// A visit is a running Session. Each visit is a coroutine. resume runs it until the session waits.
type visit struct {
	*Session
	p       *player
	id      uint64
	now     int64 // the session's clock, in microseconds since 1970
	resume  func() (wait, bool)
	stop    func()
	yield   func(wait) bool
	outcome *Outcome

	decision string // latest answer
	text     string

	name             string // name in the greeting
	word             string // EHLO or HELO
	tls              bool
	smtps            bool // starts with TLS
	live             bool // no script: the caller decides about each step
	authed           bool
	junk             bool // mark the session's messages as junk
	tx               tx
	last             smtpd.ID // event to which smtpd attributes an input error
	lastRcpt, sender string
	leaving          bool // the client quits
	gone             bool // the connection is closed
}

// tx is a transaction.
type tx struct {
	open     bool
	msgid    uint32
	accepted int
	junk     bool
}

// A wait is the reason why a visit is waiting.
type wait uint8

const (
	forTime wait = iota
	forAnswer
)

func newVisit(p *player, s *Session, n uint64) *visit {
	v := &visit{Session: s, p: p, now: s.Start.UnixMicro()}
	// smtpd generates ids from a counter and a random number, which is constant here.
	v.id = n<<32 | mix(n)>>32
	v.outcome = &Outcome{Label: s.Label, Session: v.id, Src: s.Src}
	v.resume, v.stop = iter.Pull(v.play)
	return v
}

// mix returns a hash of n (the finaliser of splitmix64).
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// play runs the whole session.
func (v *visit) play(yield func(wait) bool) {
	v.yield = yield
	v.connect()
	for i := 0; i < len(v.Steps) && !v.gone && !v.leaving; i++ {
		v.do(&v.Steps[i])
	}
	if v.leaving && !v.gone {
		v.pause(reaction)
		v.quit()
	}
	if v.tx.open {
		v.rollback()
	}
	v.report(smtpd.LinkDisconnect)
}

// reaction is the time that a client takes for a command outside its script.
const reaction = 30 * time.Millisecond

// pause advances the session's clock.
func (v *visit) pause(d time.Duration) {
	v.now += d.Microseconds()
	v.wait(forTime)
}

func (v *visit) wait(w wait) {
	if !v.gone && !v.yield(w) {
		v.gone = true // Play is ending all sessions
	}
}

func (v *visit) connect() {
	rdns := v.RDNS
	if rdns == "" {
		rdns = "<unknown>"
	}
	v.report(smtpd.LinkConnect, rdns, v.FCrDNS, v.Src.String(), v.Dst.String())
	address := v.Src.Addr().String()
	if v.Src.Addr().Is6() {
		address = "[" + address + "]"
	}
	if !v.ask(smtpd.PhaseConnect, rdns, address) {
		v.leaving = true // without a banner, the client cannot send commands
		return
	}
	if v.smtps {
		v.tls = true
		v.report(smtpd.LinkTLS, "TLSv1.3:TLS_AES_256_GCM_SHA384:256")
	}
	v.server("220 " + ServerName + " ESMTP OpenSMTPD")
	v.report(smtpd.LinkGreeting, ServerName)
}

func (v *visit) do(s *Step) {
	if s.Kind == Mail && v.tx.open {
		v.pause(reaction) // abandon the open transaction
		v.rset()
		if v.gone {
			return
		}
	}
	switch {
	case s.Kind == Data && v.tx.accepted == 0:
		return // no recipient
	case s.Kind == StartTLS && v.word == "HELO":
		return // STARTTLS is not offered after HELO
	}
	v.pause(s.Gap)
	switch s.Kind {
	case Ehlo:
		v.greet("EHLO", s.Text)
	case Helo:
		v.greet("HELO", s.Text)
	case StartTLS:
		v.startTLS(s.Gap)
	case Auth:
		v.auth(s)
	case Mail:
		v.mail(s.Text)
	case Rcpt:
		v.rcpt(s)
	case Data:
		v.data(s.Size)
	case Rset:
		v.rset()
	case Noop:
		v.client("NOOP")
		if v.ask(smtpd.PhaseNoop) {
			v.server("250 2.0.0 Ok")
		}
	case Quit:
		v.quit()
	case Command:
		v.client(s.Text)
		v.server("500 5.5.1 Invalid command: Command unrecognized")
	case Pipelined:
		v.pipelined()
	case Drop:
		v.gone = true
	}
}

const outOfOrder = "503 5.5.1 Invalid command: Command not allowed at this point."

func (v *visit) greet(word, name string) {
	v.client(word + " " + name)
	if word == "HELO" && v.name != "" {
		v.server("503 5.5.1 Invalid command: Already identified")
		return
	}
	phase := smtpd.PhaseEhlo
	if word == "HELO" {
		phase = smtpd.PhaseHelo
	}
	if !v.ask(phase, name) {
		// If EHLO is rejected, a client tries HELO (RFC 5321 section 3.2).
		switch {
		case v.gone, v.live:
		case word == "EHLO" && v.text[0] == '5' && v.name == "":
			v.pause(reaction)
			v.greet("HELO", name)
		default:
			v.leaving = true
		}
		return
	}
	if v.tx.open {
		v.rollback()
	}
	v.name, v.word = name, word
	v.report(smtpd.LinkIdentify, word, name)
	src := v.Src.Addr().String()
	hello := ServerName + " Hello " + name + " [" + src + "], pleased to meet you"
	if word == "HELO" {
		v.server("250 " + hello)
		return
	}
	v.server("250-" + hello)
	v.server("250-8BITMIME")
	v.server("250-ENHANCEDSTATUSCODES")
	v.server("250-SIZE 36700160")
	v.server("250-DSN")
	if !v.tls {
		v.server("250-STARTTLS")
	} else if v.submission() {
		v.server("250-AUTH PLAIN LOGIN")
	}
	v.server("250 HELP")
}

// submission reports whether the session uses a submission port.
func (v *visit) submission() bool { return v.Dst.Port() != 25 }

func (v *visit) startTLS(gap time.Duration) {
	v.client("STARTTLS")
	if v.name == "" || v.tls {
		v.server(outOfOrder)
		return
	}
	if !v.ask(smtpd.PhaseStartTLS) {
		return // the client continues without TLS
	}
	v.server("220 2.0.0 Ready to start TLS")
	v.pause(2 * gap)
	v.tls = true
	v.report(smtpd.LinkTLS, "TLSv1.3:TLS_AES_256_GCM_SHA384:256")
	v.pause(gap)
	v.greet("EHLO", v.name)
}

func (v *visit) auth(s *Step) {
	v.client("AUTH PLAIN ********")
	if !v.submission() || !v.tls || v.authed {
		v.server("503 5.5.1 Invalid command: Command not supported")
		return
	}
	if !v.ask(smtpd.PhaseAuth, "PLAIN ********") {
		return
	}
	if s.Fate != OK {
		v.report(smtpd.LinkAuth, "fail", s.Text)
		v.pause(time.Duration(mix(v.id+uint64(v.now))%1_000_000) * time.Microsecond) // up to a second
		v.server("535 Authentication failed")
		return
	}
	v.authed = true
	v.report(smtpd.LinkAuth, "pass", s.Text)
	v.server("235 2.0.0 Authentication succeeded")
}

func (v *visit) mail(sender string) {
	v.client("MAIL FROM:<" + sender + ">")
	switch {
	case v.name == "":
		v.server(outOfOrder)
		v.leaving = true
		return
	case v.tx.open:
		v.server(outOfOrder)
		v.report(smtpd.TxMail, v.msgid(), "permfail", sender)
		v.leaving = true
		return
	case v.submission() && !v.authed:
		v.server("530 5.5.1 Invalid command: Must issue an AUTH command first")
		v.leaving = true
		return
	case !v.ask(smtpd.PhaseMailFrom, sender):
		v.leaving = true
		return
	}
	v.server("250 2.0.0 Ok")
	v.tx = tx{open: true, msgid: uint32(mix(v.id ^ uint64(v.now)))}
	v.junk = v.junk || v.decision == "junk"
	v.last, v.sender = smtpd.TxMail, sender
	v.report(smtpd.TxBegin, v.msgid())
	v.report(smtpd.TxMail, v.msgid(), "ok", sender)
}

func (v *visit) rcpt(s *Step) {
	v.client("RCPT TO:<" + s.Text + ">")
	if !v.tx.open {
		v.server(outOfOrder)
		return
	}
	v.last, v.lastRcpt = smtpd.TxRcpt, s.Text
	if !v.ask(smtpd.PhaseRcptTo, s.Text) {
		v.outcome.RcptRefused++
		v.report(smtpd.TxRcpt, v.msgid(), v.result(), s.Text)
		return
	}
	v.tx.junk = v.tx.junk || v.decision == "junk"
	switch s.Fate {
	case Unknown:
		v.outcome.RcptUnknown++
		v.server("550 Invalid recipient: <" + s.Text + ">")
		v.report(smtpd.TxRcpt, v.msgid(), "permfail", s.Text)
	case Later:
		v.outcome.RcptUnknown++
		v.server("451 4.3.0 Temporary failure: <" + s.Text + ">")
		v.report(smtpd.TxRcpt, v.msgid(), "tempfail", s.Text)
	default:
		v.outcome.RcptOK++
		v.tx.accepted++
		evpid := uint64(v.tx.msgid)<<32 | mix(v.id+uint64(v.now))>>32
		v.report(smtpd.TxEnvelope, v.msgid(), fmt.Sprintf("%016x", evpid))
		v.server("250 2.1.5 Destination address valid: Recipient ok")
		v.report(smtpd.TxRcpt, v.msgid(), "ok", s.Text)
	}
}

// bytesPerSecond is the speed at which messages are sent.
const bytesPerSecond = 2 << 20

func (v *visit) data(size int) {
	v.client("DATA")
	v.last = smtpd.TxData
	if !v.ask(smtpd.PhaseData) {
		v.report(smtpd.TxData, v.msgid(), v.result())
		return // the transaction is still open
	}
	v.tx.junk = v.tx.junk || v.decision == "junk"
	v.server(`354 Enter mail, end with "." on a line by itself`)
	v.report(smtpd.TxData, v.msgid(), "ok")
	v.pause(reaction + time.Duration(size)*time.Second/bytesPerSecond)
	v.client(".")
	if !v.ask(smtpd.PhaseCommit) {
		v.report(smtpd.TxData, v.msgid(), v.result())
		v.rollback()
		return
	}
	v.outcome.Mails++
	v.outcome.Junked = v.outcome.Junked || v.junk || v.tx.junk
	v.server("250 2.0.0 " + v.msgid() + " Message accepted for delivery")
	v.report(smtpd.TxCommit, v.msgid(), strconv.Itoa(size))
	v.report(smtpd.TxReset, v.msgid())
	v.tx = tx{}
}

func (v *visit) rset() {
	v.client("RSET")
	if v.name == "" {
		v.server(outOfOrder)
		return
	}
	if !v.ask(smtpd.PhaseRset) {
		return
	}
	v.server("250 2.0.0 Reset state")
	if v.tx.open {
		v.rollback()
	}
}

func (v *visit) quit() {
	v.client("QUIT")
	if v.ask(smtpd.PhaseQuit) {
		v.server("221 2.0.0 Bye")
	}
	v.gone = true // the client disconnects first
}

// pipelined ends the session. smtpd disconnects without reading the lines, and attributes the error
// to the previous command.
func (v *visit) pipelined() {
	v.server("500 5.5.1 Invalid command: Pipelining not supported")
	if v.tx.open {
		switch v.last {
		case smtpd.TxMail:
			v.report(smtpd.TxMail, v.msgid(), "permfail", v.sender)
		case smtpd.TxRcpt:
			v.report(smtpd.TxRcpt, v.msgid(), "permfail", v.lastRcpt)
		case smtpd.TxData:
			v.report(smtpd.TxData, v.msgid(), "permfail")
		}
	}
	v.gone = true
}

func (v *visit) rollback() {
	v.report(smtpd.TxRollback, v.msgid())
	v.report(smtpd.TxReset, v.msgid())
	v.tx = tx{}
}

// msgid returns the open transaction's id.
func (v *visit) msgid() string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v.tx.msgid)
	return hex.EncodeToString(b[:])
}

// result returns the result that tx events contain after a rejection by the filter.
func (v *visit) result() string {
	if strings.HasPrefix(v.text, "4") {
		return "tempfail"
	}
	return "permfail"
}

// ask sends a request if the handler has registered for the phase. It reports whether the client
// may continue. If not, the client has received the reply, and may have been disconnected.
func (v *visit) ask(phase smtpd.ID, fields ...string) bool {
	v.decision, v.text = "proceed", ""
	if v.p.phases[phase] {
		if v.gone {
			return false
		}
		v.line("filter", phase, true, fields)
		v.wait(forAnswer)
		if v.gone {
			return false // Play is ending all sessions
		}
		if hold := v.p.hold; hold > 0 && v.p.held < smtpd.MaxHeld {
			v.p.held++
			v.pause(hold)
			v.p.held--
			v.outcome.Held += hold
		}
	}
	name := phase.String()
	switch phase {
	case smtpd.PhaseConnect:
		name = "connected"
	case smtpd.PhaseStartTLS:
		name = "tls"
	}
	switch v.decision {
	case "junk":
		v.junk = v.junk || phase == smtpd.PhaseConnect || phase == smtpd.PhaseHelo || phase == smtpd.PhaseEhlo
		fallthrough
	case "proceed":
		v.report(smtpd.FilterResponse, name, v.decision)
		return true
	}
	// smtpd treats a rejection with code 421 as a disconnect.
	hangUp := v.decision == "disconnect" || strings.HasPrefix(v.text, "421")
	decision := v.decision
	if hangUp {
		decision = "disconnect"
	}
	v.report(smtpd.FilterResponse, name, decision, v.text)
	v.server(v.text)
	v.outcome.Refused = append(v.outcome.Refused, Refusal{Phase: phase, Text: v.text})
	if hangUp {
		v.outcome.Disconnected, v.gone = true, true
	}
	return false
}

// hear checks the answer to a request as strictly as smtpd does.
func (v *visit) hear(answer []byte) error {
	f := strings.SplitN(string(answer), "|", 5)
	want := fmt.Sprintf("%016x", v.id)
	if len(f) < 4 || f[0] != "filter-result" || f[1] != want {
		return fmt.Errorf("answer to session %s: %.200q", want, answer)
	}
	v.decision = f[3]
	switch {
	case (v.decision == "proceed" || v.decision == "junk") && len(f) == 4:
	case (v.decision == "reject" || v.decision == "disconnect") && len(f) == 5 && len(f[4]) > 4 && (f[4][0] == '4' || f[4][0] == '5'):
		v.text = f[4]
	default:
		return fmt.Errorf("answer to session %s: smtpd does not accept %.200q", want, answer)
	}
	return nil
}

func (v *visit) client(line string) { v.report(smtpd.ProtocolClient, line) }
func (v *visit) server(line string) { v.report(smtpd.ProtocolServer, line) }

func (v *visit) report(id smtpd.ID, fields ...string) { v.line("report", id, false, fields) }

// tick is the time between two lines in microseconds.
const tick = 4

// line appends a line to the stream.
func (v *visit) line(kind string, id smtpd.ID, request bool, fields []string) {
	b := append(append(v.p.out, kind...), "|0.7|"...)
	b = strconv.AppendInt(b, v.now/1e6, 10)
	b = append(b, '.')
	for unit := int64(100_000); unit > 0; unit /= 10 {
		b = append(b, '0'+byte(v.now/unit%10))
	}
	b = append(append(b, "|smtp-in|"...), id.String()...)
	b = appendID(append(b, '|'), v.id)
	if request {
		b = appendID(append(b, '|'), mix(uint64(id)))
		if len(fields) == 0 {
			b = append(b, '|') // a request from smtpd always has at least one argument
		}
	}
	for _, f := range fields {
		b = append(append(b, '|'), f...)
	}
	v.p.out = append(b, '\n')
	v.now += tick
}

func appendID(b []byte, id uint64) []byte {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], id)
	return hex.AppendEncode(b, raw[:])
}
