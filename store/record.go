package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"scanwatch/internal/smtp"

	"google.golang.org/protobuf/encoding/protowire"
)

// A Record is a recorded SMTP session. It contains the numbers that reports need, and the steps in
// order. Text fields hold text from the client, up to a limit. This text is untrusted and must be
// escaped on output. The text of a decoded Record aliases the encoded value.
type Record struct {
	ID     uint64    // smtpd's session id; unique only within one run of smtpd
	Start  time.Time // when the client connected
	End    time.Time // when the session ended
	Src    netip.AddrPort
	Dst    netip.AddrPort // the listener, possibly a wildcard address
	RDNS   []byte         // reverse DNS name; empty if there is none
	FCrDNS smtp.FCrDNS
	Ending smtp.Ending
	Local  bool // from smtpd's local socket; Src and Dst are invalid
	// Erased is set if the operator has removed the source and all the client's
	// names and text. Src is then invalid.
	Erased bool
	Counts Counts
	// Omitted is the number of steps that were not recorded because the record reached
	// its maximum size. Counts includes these steps.
	Omitted uint32
	// Sessions is the number of sessions in an aggregate, or 0 in other
	// records. An aggregate combines sessions from one source in one hour.
	// Start belongs to the first session; End and ID belong to the last
	// session. Counts are exact totals, and Src has no port. The steps of an
	// aggregate are tallies without a time: see Step.Times.
	Sessions uint32
	Found    uint32 // number of Sessions with a finding
	Rejected uint32 // number of Sessions that a rule or ban rejected
	// LastStart is the time in microseconds between the first and the latest
	// start in an aggregate.
	LastStart uint64
	// Sketch estimates the number of sources in an aggregate of several sources; see
	// internal/sketch. An aggregate with a Sketch has no Src.
	Sketch []byte

	Server   []byte // the mail server of the session; empty: this host
	FrontEnd []byte // the front end of the filter, such as smtpd; empty: smtpd
	Origin   []byte // the source of an imported or received record; empty: this filter

	steps []byte // encoded, unless block is set
	block *block // contains the steps
	row   int    // number of the record in block
	skip  Kinds  // steps that Steps and Cursor do not visit
	step  *Step  // reused by Steps; may be nil
}

// Counts holds a session's counters, which include omitted steps.
type Counts struct {
	Commands     uint32 // lines of the client, except message text
	Unknown      uint32 // unknown commands
	Failed       uint32 // commands with a 4xx or 5xx reply, including unknown ones
	Mails        uint32 // messages accepted
	RcptOK       uint32 // recipients accepted
	RcptPermfail uint32 // recipients rejected permanently
	RcptTempfail uint32 // recipients deferred
	AuthPass     uint32
	AuthFail     uint32
	AuthRefused  uint32 // rejected AUTH commands
}

// Clone returns a copy of r that shares no memory with it.
func (r *Record) Clone() Record {
	c := *r
	c.steps, c.block, c.step = r.encodedSteps(), nil, nil
	for _, b := range [...]*[]byte{&c.RDNS, &c.Sketch, &c.Server, &c.FrontEnd, &c.Origin} {
		*b = bytes.Clone(*b)
	}
	return c
}

// WithSteps returns a copy of r with different steps, as encoded by
// AppendStep.
func (r *Record) WithSteps(steps []byte) Record {
	c := *r
	c.steps, c.block, c.skip = steps, nil, 0
	return c
}

// encodedSteps returns a copy of r's steps as encoded by AppendStep.
func (r *Record) encodedSteps() []byte {
	if r.block == nil {
		return bytes.Clone(r.steps)
	}
	steps := make([]byte, 0, 32*len(r.block.kinds.At(r.row)))
	var last time.Duration
	var s Step
	for c := r.Cursor(); c.Next(&s); last = s.At {
		steps = AppendStep(steps, &s, s.At-last)
	}
	return steps
}

// Size returns the approximate number of bytes of memory that a Clone of r
// uses.
func (r *Record) Size() int {
	n := 384 + len(r.RDNS) + len(r.Sketch) + len(r.steps)
	if r.block != nil {
		n += len(r.encodedSteps())
	}
	return n
}

// Steps calls visit for each step in order, until visit returns false. The Step is valid
// until visit returns.
func (r *Record) Steps(visit func(*Step) bool) error {
	if b := r.block; b != nil && !b.wants(b.kinds.At(r.row)) {
		return nil
	}
	s := r.step
	if s == nil {
		s = new(Step)
	}
	c := r.Cursor()
	for c.Next(s) {
		if !visit(s) {
			return nil
		}
	}
	return c.Err()
}

// Cursor returns a Cursor at the first step of r. The Cursor is valid while r is valid.
func (r *Record) Cursor() Cursor {
	c := Cursor{id: r.ID, rest: r.steps, skip: r.skip}
	if r.block != nil {
		c.block = r.block.cursor(r.row)
	}
	return c
}

// A Cursor iterates over a record's steps.
type Cursor struct {
	id   uint64
	rest []byte
	at   time.Duration
	skip Kinds
	err  error

	block blockCursor // if the steps are in a block
}

// NewCursor returns a Cursor over the output of AppendStep.
func NewCursor(steps []byte) Cursor { return Cursor{rest: steps} }

// Next sets s to the next step. Next returns false at the end and at a corrupt step. After a
// corrupt step, Err returns the error.
func (c *Cursor) Next(s *Step) bool {
	if c.block.b != nil {
		return c.block.next(s)
	}
	for len(c.rest) > 0 {
		tag, _, text, rest := consume(c.rest)
		var err error
		switch tag {
		case recSteps:
			*s = Step{}
			err = s.decode(text)
		case 0:
			err = fieldError(c.rest)
		default:
			c.rest = rest
			continue
		}
		c.rest = rest
		if err != nil {
			c.rest, c.err = nil, fmt.Errorf("session %016x: step: %w", c.id, err)
			return false
		}
		c.at = min(c.at+s.At, micros(maxMicros))
		if s.At = c.at; (^c.skip).Has(s.Kind) {
			return true
		}
	}
	return false
}

// If a step was corrupt, Err returns the error. Otherwise, it returns nil.
func (c *Cursor) Err() error { return c.err }

// A Step is an event in a session. The constants of Kind document which fields each
// kind uses.
type Step struct {
	Kind Kind
	At   time.Duration // since the start of the session

	Text   []byte
	Arg    []byte
	Result smtp.Result
	Code   uint32 // SMTP reply code; 0 if unknown
	Reply  []byte // text of the reply without the code; not recorded for every step
	Size   uint64 // bytes of an accepted message
	MsgID  uint32 // smtpd's message id

	Phase    smtp.Phase
	Decision smtp.Decision
	Enforced bool   // a verdict or ban took effect; false if it was only observed or withheld
	Banned   bool   // a verdict that follows from an active ban
	Session  uint64 // with Banned: the session that caused the ban; 0 for a manual ban

	Prefix netip.Prefix // the banned prefix
	Until  time.Time    // end of a ban in UTC, to the second; zero for a withheld ban
	Exempt string       // the reason for withholding a ban or verdict; empty if it was not withheld

	Org        []byte // the organisation; empty if unknown
	By         []byte // the source of a finding, such as rdns, helo, cidr or command
	Match      []byte // the row or value that matched
	Confidence []byte // high, medium or low

	Rule uint32 // RuleRef of the rule's text; 0 if no text was recorded

	// The following fields are used only in aggregates' tallies; see record.proto.
	Times uint32 // number of sessions with this step
	Count uint32 // KindRcpt, KindAuth: number of such steps
	Most  uint32 // KindRcpt, KindAuth: maximum of Count in one session
	// First is the time in microseconds from the aggregate's start to the end of its first session
	// with this step. First is set only for KindFinding and KindBan. For KindFinding, sessions with
	// more than low confidence take precedence.
	First uint64
}

// PhaseName returns the name of the phase, or the mail server's word for an
// unknown phase.
func (s *Step) PhaseName() string {
	if s.Phase >= smtp.NumPhases && len(s.Arg) > 0 {
		return string(s.Arg)
	}
	return s.Phase.String()
}

// DecisionName returns the name of the decision, or the filter's word for
// an unknown decision.
func (s *Step) DecisionName() string {
	if s.Kind == KindFilter && len(s.Text) > 0 {
		return string(s.Text)
	}
	return s.Decision.String()
}

// Kind is the kind of a Step.
type Kind uint8

// The numbers are stored on disk. Never reuse or reorder them.
const (
	KindNone     Kind = 0
	KindGreeting Kind = 1  // smtpd greeted (220)
	KindHelo     Kind = 2  // Text: identity, Arg: HELO or EHLO, Result, Code, Reply
	KindTLS      Kind = 3  // Text: version:cipher:bits
	KindAuth     Kind = 4  // Text: user name, Result pass, fail or error
	KindMail     Kind = 5  // Text: sender, Result, Code, Reply, MsgID
	KindRcpt     Kind = 6  // Text: recipient, Result, Code, Reply
	KindData     Kind = 7  // Result, Code, Reply
	KindCommit   Kind = 8  // Size
	KindRollback Kind = 9  // the transaction ended without a message
	KindCommand  Kind = 10 // an unknown or failed command. Text: the line, Code, Reply
	KindInput    Kind = 11 // smtpd rejected input that is not a command. Code, Reply
	KindTimeout  Kind = 12 // smtpd timed out
	KindQuit     Kind = 13 // the client sent QUIT
	KindFinding  Kind = 14 // Text: evidence, Arg: proof, Org, By, Match, Confidence
	KindVerdict  Kind = 15 // the policy decided. Text: rule or reason of the ban, Phase, Decision, Enforced, Exempt, Banned, Session, Rule
	// KindFilter is a decision by this or another filter: Phase, Decision, and
	// the parameter in Reply. For an unknown phase, Phase is smtp.NumPhases and
	// Arg is the mail server's word. For an unknown decision, Decision is
	// Proceed and Text is the filter's word.
	KindFilter Kind = 16
	KindTag    Kind = 17 // a rule tagged the session. Text: tag, Phase
	KindBan    Kind = 18 // a rule banned the host. Text: rule, Prefix, Until, Enforced, Exempt, Rule
	// KindReference refers to a session in an aggregate that was rejected, or in which
	// a rule banned the host. Session is the session's id, which the reply to the
	// client contains.
	KindReference Kind = 19
	// KindListed is a DNS list's answer about the source. Text is the list's name,
	// Match the zone, and Arg the return codes. Result is fail if a block list
	// contains the source, pass if an allowlist does, and ok if the list does
	// not contain it.
	KindListed Kind = 20
)

// A record is a protocol buffers message. store/record.proto describes the message for
// other languages and for protoc --decode. The key consists of the session's end and
// id.
const (
	recDuration  = 1
	recSrc       = 2
	recDst       = 3
	recRDNS      = 4
	recFCrDNS    = 5
	recEnding    = 6
	recLocal     = 7
	recCounts    = 8
	recOmitted   = 9
	recSessions  = 10
	recFound     = 11
	recSketch    = 12
	recServer    = 13
	recFrontEnd  = 14
	recOrigin    = 16
	recRejected  = 17
	recLastStart = 18
	recErased    = 19
	recSteps     = 15

	stepKind       = 1
	stepAt         = 2 // microseconds since the previous step
	stepText       = 3
	stepArg        = 4
	stepResult     = 5
	stepCode       = 6
	stepReply      = 7
	stepSize       = 8
	stepMsgID      = 9
	stepOrg        = 10
	stepBy         = 11
	stepMatch      = 12
	stepConfidence = 13
	stepRule       = 14
	stepTimes      = 15
	stepPhase      = 16
	stepDecision   = 17
	stepEnforced   = 18
	stepBanned     = 19
	stepSession    = 20
	stepPrefix     = 21
	stepUntil      = 22 // seconds since 1970
	stepExempt     = 23
	stepCount      = 24
	stepMost       = 25
	stepFirst      = 26
)

// KeySize is the length of a key in bytes. A key consists of the session's end
// in microseconds since 1970 and its id, both big-endian. Keys start with the
// session's end, so new records are appended, which is cheap.
const KeySize = 16

// AppendKey appends the key of the session with the given end and id.
func AppendKey(dst []byte, end time.Time, id uint64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(end.UnixMicro()))
	return binary.BigEndian.AppendUint64(dst, id)
}

// AppendRecord appends the encoding of r. steps is the output of AppendStep.
func AppendRecord(dst []byte, r *Record, steps []byte) []byte {
	dst = appendUint(dst, recDuration, uint64(max(r.End.Sub(r.Start), 0).Microseconds()))
	dst = appendAddr(dst, recSrc, r.Src)
	dst = appendAddr(dst, recDst, r.Dst)
	dst = appendText(dst, recRDNS, r.RDNS)
	dst = appendUint(dst, recFCrDNS, uint64(r.FCrDNS))
	dst = appendUint(dst, recEnding, uint64(r.Ending))
	if r.Local {
		dst = appendUint(dst, recLocal, 1)
	}
	if r.Counts != (Counts{}) {
		dst = protowire.AppendTag(dst, recCounts, protowire.BytesType)
		dst = append(dst, 0) // one byte for the length: at most ten varints of 5 bytes follow
		at := len(dst)
		for _, n := range r.Counts.fields() {
			dst = protowire.AppendVarint(dst, uint64(*n))
		}
		dst[at-1] = byte(len(dst) - at)
	}
	dst = appendUint(dst, recOmitted, uint64(r.Omitted))
	dst = appendUint(dst, recSessions, uint64(r.Sessions))
	dst = appendUint(dst, recFound, uint64(r.Found))
	dst = appendUint(dst, recRejected, uint64(r.Rejected))
	dst = appendUint(dst, recLastStart, r.LastStart)
	dst = appendBool(dst, recErased, r.Erased)
	dst = appendBytes(dst, recSketch, r.Sketch, MaxSketch)
	dst = appendText(dst, recServer, r.Server)
	dst = appendText(dst, recFrontEnd, r.FrontEnd)
	dst = appendText(dst, recOrigin, r.Origin)
	return append(dst, steps...)
}

// AppendStep appends the encoding of s. since is the time since the previous step, or
// since the start of the session. AppendStep ignores s.At.
func AppendStep(dst []byte, s *Step, since time.Duration) []byte {
	dst = protowire.AppendTag(dst, recSteps, protowire.BytesType)
	dst = append(dst, 0, 0) // two bytes for the length of the step
	at := len(dst)
	dst = appendUint(dst, stepKind, uint64(s.Kind))
	dst = appendUint(dst, stepAt, uint64(max(since, 0).Microseconds()))
	dst = appendText(dst, stepText, s.Text)
	dst = appendText(dst, stepArg, s.Arg)
	dst = appendUint(dst, stepResult, uint64(s.Result))
	dst = appendUint(dst, stepCode, uint64(s.Code))
	dst = appendText(dst, stepReply, s.Reply)
	dst = appendUint(dst, stepSize, s.Size)
	dst = appendUint(dst, stepMsgID, uint64(s.MsgID))
	dst = appendText(dst, stepOrg, s.Org)
	dst = appendText(dst, stepBy, s.By)
	dst = appendText(dst, stepMatch, s.Match)
	dst = appendText(dst, stepConfidence, s.Confidence)
	dst = appendUint(dst, stepRule, uint64(s.Rule))
	dst = appendUint(dst, stepTimes, uint64(s.Times))
	dst = appendUint(dst, stepPhase, uint64(s.Phase))
	dst = appendUint(dst, stepDecision, uint64(s.Decision))
	dst = appendBool(dst, stepEnforced, s.Enforced)
	dst = appendBool(dst, stepBanned, s.Banned)
	dst = appendUint(dst, stepSession, s.Session)
	dst = appendPrefix(dst, stepPrefix, s.Prefix)
	dst = appendUint(dst, stepUntil, uint64(max(s.Until.Unix(), 0)))
	dst = appendText(dst, stepExempt, []byte(s.Exempt[:min(len(s.Exempt), maxExempt)]))
	dst = appendUint(dst, stepCount, uint64(s.Count))
	dst = appendUint(dst, stepMost, uint64(s.Most))
	dst = appendUint(dst, stepFirst, s.First)
	n := len(dst) - at
	if n < 1<<7 { // usually one byte
		dst[at-2] = byte(n)
		copy(dst[at-1:], dst[at:])
		return dst[:len(dst)-1]
	}
	dst[at-2], dst[at-1] = byte(n)|0x80, byte(n>>7)
	return dst
}

// MaxText is the maximum length in bytes of a step's text field. AppendStep truncates
// longer text. Seven text fields of MaxText bytes and one of maxExempt bytes fit into
// 16,384 bytes.
const MaxText = 2048

// MaxSketch is the maximum length of a sketch in bytes.
const MaxSketch = 4096

const (
	maxExempt = 64
	maxUntil  = 253402300799 // the last second of the year 9999
)

func appendUint(dst []byte, tag protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, tag, protowire.VarintType), v)
}

func appendBool(dst []byte, tag protowire.Number, v bool) []byte {
	if !v {
		return dst
	}
	return appendUint(dst, tag, 1)
}

func appendText(dst []byte, tag protowire.Number, b []byte) []byte {
	return appendBytes(dst, tag, b, MaxText)
}

func appendBytes(dst []byte, tag protowire.Number, b []byte, most int) []byte {
	if len(b) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, tag, protowire.BytesType), b[:min(len(b), most)])
}

func appendAddr(dst []byte, tag protowire.Number, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return dst
	}
	dst = protowire.AppendTag(dst, tag, protowire.BytesType)
	if a.Addr().Is4() {
		ip := a.Addr().As4()
		dst = append(append(dst, 6), ip[:]...)
	} else {
		ip := a.Addr().As16()
		dst = append(append(dst, 18), ip[:]...)
	}
	return binary.BigEndian.AppendUint16(dst, a.Port())
}

func appendPrefix(dst []byte, tag protowire.Number, p netip.Prefix) []byte {
	if !p.IsValid() {
		return dst
	}
	dst = protowire.AppendTag(dst, tag, protowire.BytesType)
	if p.Addr().Is4() {
		ip := p.Addr().As4()
		dst = append(append(dst, 5), ip[:]...)
	} else {
		ip := p.Addr().As16()
		dst = append(append(dst, 17), ip[:]...)
	}
	return append(dst, byte(p.Bits()))
}

func (c *Counts) fields() [10]*uint32 {
	return [...]*uint32{&c.Commands, &c.Unknown, &c.Failed, &c.Mails, &c.RcptOK, &c.RcptPermfail,
		&c.RcptTempfail, &c.AuthPass, &c.AuthFail, &c.AuthRefused}
}

// Decode decodes a record. The Record's text aliases value.
func Decode(key, value []byte) (Record, error) {
	var r Record
	err := r.decode(key, value)
	return r, err
}

// decode decodes into an empty Record r.
func (r *Record) decode(key, value []byte) error {
	if len(key) != KeySize {
		return fmt.Errorf("record key of %d bytes, want %d", len(key), KeySize)
	}
	r.End = time.UnixMicro(int64(binary.BigEndian.Uint64(key)))
	r.ID = binary.BigEndian.Uint64(key[8:])
	r.Start = r.End
	for b := value; len(b) > 0; {
		if b[0] == recSteps<<3|byte(protowire.BytesType) {
			r.steps = b // the steps follow the header
			break
		}
		tag, num, text, rest := consume(b)
		var err error
		switch tag {
		case 0:
			err = fieldError(b)
		case recDuration:
			r.Start = r.End.Add(-micros(num))
		case recSrc:
			r.Src, err = decodeAddr(text)
		case recDst:
			r.Dst, err = decodeAddr(text)
		case recRDNS:
			r.RDNS = text
		case recFCrDNS:
			r.FCrDNS = smtp.FCrDNS(num)
		case recEnding:
			r.Ending = smtp.Ending(num)
		case recLocal:
			r.Local = num != 0
		case recCounts:
			err = r.Counts.decode(text)
		case recOmitted:
			r.Omitted = uint32(num)
		case recSessions:
			r.Sessions = uint32(num)
		case recFound:
			r.Found = uint32(num)
		case recRejected:
			r.Rejected = uint32(num)
		case recLastStart:
			r.LastStart = num
		case recErased:
			r.Erased = num != 0
		case recSketch:
			r.Sketch = text
		case recServer:
			r.Server = text
		case recFrontEnd:
			r.FrontEnd = text
		case recOrigin:
			r.Origin = text
		}
		if err != nil {
			return fmt.Errorf("session %016x: %w", r.ID, err)
		}
		b = rest
	}
	return nil
}

// Add adds another session's counts without overflowing.
func (c *Counts) Add(o *Counts) {
	from := o.fields()
	for i, to := range c.fields() {
		*to += min(*from[i], math.MaxUint32-*to)
	}
}

// Many returns the number of sessions in an aggregate, or 1 for any other
// record.
func (r *Record) Many() int { return max(int(r.Sessions), 1) }

func (c *Counts) decode(b []byte) error {
	for _, p := range c.fields() {
		if len(b) == 0 {
			return nil // a record of an older version has fewer counts
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		*p, b = uint32(v), b[n:]
	}
	return nil
}

func (s *Step) decode(b []byte) error {
	for len(b) > 0 {
		tag, num, text, rest := consume(b)
		var err error
		switch tag {
		case 0:
			err = fieldError(b)
		case stepKind:
			s.Kind = Kind(num)
		case stepAt:
			s.At = micros(num)
		case stepText:
			s.Text = text
		case stepArg:
			s.Arg = text
		case stepResult:
			s.Result = smtp.Result(num)
		case stepCode:
			s.Code = uint32(num)
		case stepReply:
			s.Reply = text
		case stepSize:
			s.Size = num
		case stepMsgID:
			s.MsgID = uint32(num)
		case stepOrg:
			s.Org = text
		case stepBy:
			s.By = text
		case stepMatch:
			s.Match = text
		case stepConfidence:
			s.Confidence = text
		case stepRule:
			s.Rule = uint32(num)
		case stepTimes:
			s.Times = uint32(num)
		case stepPhase:
			s.Phase = smtp.Phase(num)
		case stepDecision:
			s.Decision = smtp.Decision(num)
		case stepEnforced:
			s.Enforced = num != 0
		case stepBanned:
			s.Banned = num != 0
		case stepSession:
			s.Session = num
		case stepPrefix:
			s.Prefix, err = decodePrefix(text)
		case stepUntil:
			s.Until = decodeUntil(num)
		case stepExempt:
			s.Exempt = string(text[:min(len(text), maxExempt)])
		case stepCount:
			s.Count = uint32(num)
		case stepMost:
			s.Most = uint32(num)
		case stepFirst:
			s.First = num
		}
		if err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// consume reads one field of any type. The caller ignores unknown fields. A tag of 0 means that b
// is corrupt, because no field has that tag; see fieldError. consume does not return an error,
// because a fifth result would not fit into registers.
func consume(b []byte) (tag protowire.Number, num uint64, text, rest []byte) {
	// Most steps only have fields with one-byte tags.
	if len(b) >= 2 && b[0] < 0x80 {
		num, n := uint64(b[1]), 1
		if num >= 0x80 {
			if num, n = protowire.ConsumeVarint(b[1:]); n < 0 {
				return 0, 0, nil, nil
			}
		}
		rest = b[1+n:]
		switch protowire.Type(b[0] & 7) {
		case protowire.VarintType:
			return protowire.Number(b[0] >> 3), num, nil, rest
		case protowire.BytesType:
			if num <= uint64(len(rest)) {
				return protowire.Number(b[0] >> 3), 0, rest[:num:num], rest[num:]
			}
			return 0, 0, nil, nil
		}
	}
	tag, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, 0, nil, nil
	}
	b = b[n:]
	if n = protowire.ConsumeFieldValue(tag, typ, b); n < 0 {
		return 0, 0, nil, nil
	}
	switch typ {
	case protowire.VarintType:
		num, _ = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		text, _ = protowire.ConsumeBytes(b)
	}
	return tag, num, text, b[n:]
}

// fieldError returns the error for the corrupt field at the start of b.
func fieldError(b []byte) error {
	_, _, n := protowire.ConsumeField(b)
	return protowire.ParseError(n)
}

// micros returns n microseconds. micros limits n, so that the sum over a record's steps does not
// overflow.
func micros(n uint64) time.Duration {
	return time.Duration(min(n, maxMicros)) * time.Microsecond
}

var (
	errAddr   = errors.New("address of an unknown length")
	errPrefix = errors.New("prefix longer than its address")
)

func decodeAddr(b []byte) (netip.AddrPort, error) {
	if len(b) != 6 && len(b) != 18 {
		return netip.AddrPort{}, errAddr
	}
	ip, _ := netip.AddrFromSlice(b[:len(b)-2])
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[len(b)-2:])), nil
}

func decodePrefix(b []byte) (netip.Prefix, error) {
	if len(b) != 5 && len(b) != 17 {
		return netip.Prefix{}, errAddr
	}
	ip, _ := netip.AddrFromSlice(b[:len(b)-1])
	p := netip.PrefixFrom(ip, int(b[len(b)-1]))
	if !p.IsValid() {
		return netip.Prefix{}, errPrefix
	}
	return p, nil
}

func decodeUntil(seconds uint64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(int64(min(seconds, maxUntil)), 0).UTC()
}

// MailServer returns the name to print for the mail server of a session with
// the given front end.
func MailServer(frontEnd string) string {
	if frontEnd == "" {
		return "smtpd"
	}
	return "the mail server"
}

// ReportedBy names the mail server and the front end that reported a session.
func ReportedBy(server, frontEnd string) string {
	if server == "" {
		return "by " + frontEnd
	}
	return "by " + server + " through " + frontEnd
}
