package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// A Record is one SMTP session as it was seen: a short header with what
// reports count, and the steps of the session in order. Text fields hold the
// bytes as the client sent them (cut to a limit); they are hostile and must be
// quoted before they are shown. In a decoded Record they alias the buffer that
// was decoded.
type Record struct {
	ID     uint64    // smtpd's session id; unique only within one run of smtpd
	Start  time.Time // when link-connect was reported
	End    time.Time // when the session ended
	Src    netip.AddrPort
	Dst    netip.AddrPort // the listener's address, possibly a wildcard
	RDNS   []byte         // reverse DNS name; empty if there is none
	FCrDNS FCrDNS
	Ending Ending
	Local  bool // came over smtpd's local socket; Src and Dst are not valid
	Counts Counts
	// Omitted is the number of steps that were counted but not kept because
	// the session reached its size limit.
	Omitted uint32
	// Sessions is not 0 if this is the sum of so many sessions of one source,
	// which were not recorded one by one: Start is the start of the first, End
	// and ID are those of the last, and the steps are findings and verdicts
	// only. Src has no port then.
	Sessions uint32
	Found    uint32 // of these, sessions with a finding

	steps []byte
	step  *Step // for Steps to use again; may be nil
}

// Counts are the numbers of a session. They are complete even where steps
// were omitted.
type Counts struct {
	Commands     uint32 // lines the client sent outside of message text
	Unknown      uint32 // commands smtpd did not recognise
	Failed       uint32 // commands answered with 4xx or 5xx, unknown ones included
	Mails        uint32 // messages accepted
	RcptOK       uint32 // recipients accepted
	RcptPermfail uint32 // recipients refused for good
	RcptTempfail uint32 // recipients refused for now
	AuthPass     uint32
	AuthFail     uint32
	AuthRefused  uint32 // AUTH commands that smtpd did not take up
}

// Clone returns a copy of r that aliases nothing.
func (r *Record) Clone() Record {
	c := *r
	c.RDNS, c.steps, c.step = bytes.Clone(r.RDNS), bytes.Clone(r.steps), nil
	return c
}

// Size is about how many bytes of memory a Clone of r takes.
func (r *Record) Size() int { return 256 + len(r.RDNS) + len(r.steps) }

// Steps calls visit for each step in order until it returns false. The Step is
// reused between calls.
func (r *Record) Steps(visit func(*Step) bool) error {
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

// Cursor returns a Cursor at the first step of r, for readers that stop on
// the way and go on later. It is valid as long as r.
func (r *Record) Cursor() Cursor { return Cursor{id: r.ID, rest: r.steps} }

// A Cursor goes through the steps of a record.
type Cursor struct {
	id   uint64
	rest []byte
	at   time.Duration
	err  error
}

// Next sets s to the next step. It returns false at the end, or where the
// record is damaged: see Err.
func (c *Cursor) Next(s *Step) bool {
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
		c.at = min(c.at+s.At, micros(1<<40))
		s.At = c.at
		return true
	}
	return false
}

// Err returns why the steps ended early, if they did.
func (c *Cursor) Err() error { return c.err }

// A Step is one thing that happened in a session. Which fields are used
// depends on Kind; see the constants.
type Step struct {
	Kind Kind
	At   time.Duration // since the start of the session

	Text   []byte
	Arg    []byte
	Result Result
	Code   uint32 // SMTP reply code, 0 if none was seen
	Reply  []byte // text of the reply without the code; kept for first examples only
	Size   uint64 // bytes of an accepted message
	MsgID  uint32 // smtpd's message id

	Org        []byte // finding: the organisation, if known
	By         []byte // finding: what gave it away (rdns, helo, cidr, command, ...)
	Match      []byte // finding: the row or value that matched
	Confidence []byte // finding: high, medium or low

	Rule uint32 // verdict, ban: RuleRef of the rule's text, 0 if it was not kept

	Times uint32 // in a sum of sessions: in how many of them
}

// Kind tells what a step is.
type Kind uint8

// The numbers are on disk: never reuse or reorder them.
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
	KindRollback Kind = 9  // the transaction was given up
	KindCommand  Kind = 10 // an unknown or failed command. Text: the line, Code, Reply
	KindInput    Kind = 11 // smtpd refused input that is no command. Code, Reply
	KindTimeout  Kind = 12 // smtpd gave up waiting
	KindQuit     Kind = 13 // the client said QUIT
	KindFinding  Kind = 14 // Text: evidence, Arg: proof, Org, By, Match, Confidence
	KindVerdict  Kind = 15 // Text: rule, Arg: phase, Reply: decision, Result ok if carried out. Because of a ban: By: ban, Match: id of the session it was banned in
	KindFilter   Kind = 16 // a filter decided. Text: decision, Arg: phase, Reply: its text
	KindTag      Kind = 17 // a rule tagged the session. Text: tag, Arg: phase
	KindBan      Kind = 18 // a rule banned the host. Text: rule, Arg: prefix, Reply: until (RFC 3339), Match: why it was spared, By: observe if it was only told, Result ok if carried out
)

// Result is the outcome of a command in smtpd's words.
type Result uint8

// The numbers are on disk.
const (
	ResultNone     Result = 0
	ResultOK       Result = 1
	ResultPermfail Result = 2
	ResultTempfail Result = 3
	ResultPass     Result = 4
	ResultFail     Result = 5
	ResultError    Result = 6
)

var resultNames = [...]string{"", "ok", "permfail", "tempfail", "pass", "fail", "error"}

func (r Result) String() string { return name(resultNames[:], uint8(r)) }

// ParseResult returns the Result with the given name, or ResultNone.
func ParseResult(b []byte) Result { return Result(lookupName(resultNames[:], b)) }

// FCrDNS is smtpd's verdict on the forward-confirmed reverse DNS. Fail also
// means "no name", "no answer" or "DNS is down": it says little.
type FCrDNS uint8

// The numbers are on disk.
const (
	FCrDNSUnknown FCrDNS = 0
	FCrDNSPass    FCrDNS = 1
	FCrDNSFail    FCrDNS = 2
	FCrDNSError   FCrDNS = 3
)

var fcrdnsNames = [...]string{"unknown", "pass", "fail", "error"}

func (f FCrDNS) String() string { return name(fcrdnsNames[:], uint8(f)) }

// ParseFCrDNS returns the FCrDNS with the given name, or FCrDNSUnknown.
func ParseFCrDNS(b []byte) FCrDNS { return FCrDNS(lookupName(fcrdnsNames[:], b)) }

// Ending tells how a session ended.
type Ending uint8

// The numbers are on disk.
const (
	EndingUnknown  Ending = 0
	EndingQuit     Ending = 1 // the client said QUIT
	EndingDropped  Ending = 2 // the client closed the connection
	EndingTimeout  Ending = 3 // smtpd gave up waiting
	EndingRejected Ending = 4 // smtpd or a filter closed the connection
	EndingStopped  Ending = 5 // smtpd stopped while the session was open
	EndingClosed   Ending = 6 // who closed the connection was not told; see detail in scanwatch.conf(5)
)

var endingNames = [...]string{"unknown", "quit", "dropped", "timeout", "rejected", "stopped", "closed"}

func (e Ending) String() string { return name(endingNames[:], uint8(e)) }

func name(names []string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("%d", i)
}

func lookupName(names []string, b []byte) int {
	for i, n := range names {
		if n != "" && string(b) == n {
			return i
		}
	}
	return 0
}

// Encoding. A record is a protocol buffers message; store/record.proto is its
// description for readers in other languages, and for protoc --decode. The
// key holds the end time and the session id, so the message does not.
const (
	recDuration = 1
	recSrc      = 2
	recDst      = 3
	recRDNS     = 4
	recFCrDNS   = 5
	recEnding   = 6
	recLocal    = 7
	recCounts   = 8
	recOmitted  = 9
	recSessions = 10
	recFound    = 11
	recSteps    = 15

	stepKind       = 1
	stepAt         = 2 // microseconds since the step before
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
)

// KeySize is the length of a record's key: the end of the session in
// microseconds since 1970, big-endian, then the session id, big-endian. So
// keys are in the order in which sessions ended, and appending is cheap.
const KeySize = 16

// AppendKey appends the key of the session with the given end and id.
func AppendKey(dst []byte, end time.Time, id uint64) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(end.UnixMicro()))
	return binary.BigEndian.AppendUint64(dst, id)
}

// AppendRecord appends the encoding of r's header followed by steps, which
// AppendStep has made, one after another.
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
		dst = append(dst, 0) // the length; ten varints of at most 5 bytes fit one byte
		at := len(dst)
		for _, n := range r.Counts.fields() {
			dst = protowire.AppendVarint(dst, uint64(*n))
		}
		dst[at-1] = byte(len(dst) - at)
	}
	dst = appendUint(dst, recOmitted, uint64(r.Omitted))
	dst = appendUint(dst, recSessions, uint64(r.Sessions))
	dst = appendUint(dst, recFound, uint64(r.Found))
	return append(dst, steps...)
}

// AppendStep appends the encoding of s, which happened since after the step
// before it (or the start of the session). s.At is not looked at.
func AppendStep(dst []byte, s *Step, since time.Duration) []byte {
	dst = protowire.AppendTag(dst, recSteps, protowire.BytesType)
	dst = append(dst, 0, 0) // two bytes of length are enough for a step
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
	n := len(dst) - at
	if n < 1<<7 { // the usual case: one byte of length, move the step down
		dst[at-2] = byte(n)
		copy(dst[at-1:], dst[at:])
		return dst[:len(dst)-1]
	}
	dst[at-2], dst[at-1] = byte(n)|0x80, byte(n>>7)
	return dst
}

// MaxText is the longest text field of a step in bytes; longer text is cut
// when it is encoded. Seven fields of it keep a step below 16,384 bytes.
const MaxText = 2048

func appendUint(dst []byte, tag protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	return protowire.AppendVarint(protowire.AppendTag(dst, tag, protowire.VarintType), v)
}

func appendText(dst []byte, tag protowire.Number, b []byte) []byte {
	if len(b) == 0 {
		return dst
	}
	return protowire.AppendBytes(protowire.AppendTag(dst, tag, protowire.BytesType), b[:min(len(b), MaxText)])
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

func (c *Counts) fields() [10]*uint32 {
	return [...]*uint32{&c.Commands, &c.Unknown, &c.Failed, &c.Mails, &c.RcptOK, &c.RcptPermfail,
		&c.RcptTempfail, &c.AuthPass, &c.AuthFail, &c.AuthRefused}
}

// Decode decodes a record. The texts of the result alias value.
func Decode(key, value []byte) (Record, error) {
	var r Record
	err := r.decode(key, value)
	return r, err
}

// decode is Decode into an empty Record.
func (r *Record) decode(key, value []byte) error {
	if len(key) != KeySize {
		return fmt.Errorf("record key of %d bytes, want %d", len(key), KeySize)
	}
	r.End = time.UnixMicro(int64(binary.BigEndian.Uint64(key)))
	r.ID = binary.BigEndian.Uint64(key[8:])
	r.Start = r.End
	for b := value; len(b) > 0; {
		if b[0] == recSteps<<3|byte(protowire.BytesType) {
			r.steps = b // the header ends where the steps begin
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
			r.FCrDNS = FCrDNS(num)
		case recEnding:
			r.Ending = Ending(num)
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
		}
		if err != nil {
			return fmt.Errorf("session %016x: %w", r.ID, err)
		}
		b = rest
	}
	return nil
}

// Add adds the counts of another session; a sum does not overflow.
func (c *Counts) Add(o *Counts) {
	from := o.fields()
	for i, to := range c.fields() {
		*to += min(*from[i], math.MaxUint32-*to)
	}
}

// Many is the number of sessions that r stands for.
func (r *Record) Many() int { return max(int(r.Sessions), 1) }

func (c *Counts) decode(b []byte) error {
	for _, p := range c.fields() {
		if len(b) == 0 {
			return nil // written by a version that knew fewer
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
		switch tag {
		case 0:
			return fieldError(b)
		case stepKind:
			s.Kind = Kind(num)
		case stepAt:
			s.At = micros(num)
		case stepText:
			s.Text = text
		case stepArg:
			s.Arg = text
		case stepResult:
			s.Result = Result(num)
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
		}
		b = rest
	}
	return nil
}

// consume reads one field of any type; a field that a newer version wrote is
// the caller's to ignore. A tag of 0, which no field has, tells that b is broken:
// see fieldError. More results would not go through registers.
func consume(b []byte) (tag protowire.Number, num uint64, text, rest []byte) {
	// Every field of ours has a tag of one byte.
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

// fieldError tells what is wrong with the field that b begins with.
func fieldError(b []byte) error {
	_, _, n := protowire.ConsumeField(b)
	return protowire.ParseError(n)
}

// micros is n microseconds, or the longest duration a record can have where n
// is nonsense: steps are added up, and the sum must stay in range.
func micros(n uint64) time.Duration {
	return time.Duration(min(n, 1<<40)) * time.Microsecond
}

var errAddr = errors.New("address of an unknown length")

func decodeAddr(b []byte) (netip.AddrPort, error) {
	if len(b) != 6 && len(b) != 18 {
		return netip.AddrPort{}, errAddr
	}
	ip, _ := netip.AddrFromSlice(b[:len(b)-2])
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[len(b)-2:])), nil
}
