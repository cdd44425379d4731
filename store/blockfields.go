package store

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"

	"scanwatch/internal/smtp"

	"google.golang.org/protobuf/encoding/protowire"
)

// A field describes a column of a block. The column has a number or a text for each record or for
// each step of one kind.
type field[T any] struct {
	name    string
	num     func(*T) uint64 // nil for a text
	setNum  func(*T, uint64)
	own     bool                             // stored for each row, never for a class
	text    func(dst []byte, from *T) []byte // appends the text
	setText func(*T, []byte)                 // may keep its argument
}

// integer is any type of number that a column can hold.
type integer interface {
	~uint8 | ~uint32 | ~uint64
}

func number[T any, N integer](name string, at func(*T) *N) field[T] {
	return field[T]{name: name, num: func(t *T) uint64 { return uint64(*at(t)) }, setNum: func(t *T, v uint64) { *at(t) = N(v) }}
}

func truth[T any](name string, at func(*T) *bool) field[T] {
	return field[T]{name: name,
		num: func(t *T) uint64 {
			if *at(t) {
				return 1
			}
			return 0
		},
		setNum: func(t *T, v uint64) { *at(t) = v != 0 }}
}

func octets[T any](name string, get func(*T) []byte, set func(*T, []byte)) field[T] {
	return field[T]{name: name, text: func(dst []byte, t *T) []byte { return append(dst, get(t)...) }, setText: set}
}

// Indexes of the key's fields in recordFields.
const (
	fieldEnd = iota
	fieldID
)

// recordFields describes the columns with one value for each record. The end precedes the duration,
// because the start is calculated from both. If no record of a block has a duration, the block has
// no column for it.
var recordFields = []field[Record]{
	fieldEnd: {name: "end", own: true, num: func(r *Record) uint64 { return uint64(r.End.UnixMicro()) },
		setNum: func(r *Record, v uint64) { r.End = time.UnixMicro(int64(v)); r.Start = r.End }},
	fieldID: {name: "id", own: true, num: func(r *Record) uint64 { return r.ID }, setNum: func(r *Record, v uint64) { r.ID = v }},
	{name: "duration", own: true, num: func(r *Record) uint64 { return uint64(max(r.End.Sub(r.Start), 0).Microseconds()) },
		setNum: func(r *Record, v uint64) { r.Start = r.End.Add(-micros(v)) }},
	{name: "src", text: func(dst []byte, r *Record) []byte { return appendIP(dst, r.Src) },
		setText: func(r *Record, b []byte) {
			ip, _ := netip.AddrFromSlice(b)
			r.Src = netip.AddrPortFrom(ip, r.Src.Port())
		}},
	{name: "port", num: func(r *Record) uint64 { return uint64(r.Src.Port()) },
		setNum: func(r *Record, v uint64) { r.Src = netip.AddrPortFrom(r.Src.Addr(), uint16(v)) }},
	{name: "dst", text: func(dst []byte, r *Record) []byte {
		if !r.Dst.IsValid() {
			return dst
		}
		return binary.BigEndian.AppendUint16(appendIP(dst, r.Dst), r.Dst.Port())
	}, setText: func(r *Record, b []byte) { r.Dst, _ = decodeAddr(b) }},
	octets("rdns", func(r *Record) []byte { return r.RDNS }, func(r *Record, b []byte) { r.RDNS = b }),
	number("fcrdns", func(r *Record) *smtp.FCrDNS { return &r.FCrDNS }),
	number("ending", func(r *Record) *smtp.Ending { return &r.Ending }),
	truth("local", func(r *Record) *bool { return &r.Local }),
	{name: "counts", text: func(dst []byte, r *Record) []byte {
		if r.Counts == (Counts{}) {
			return dst
		}
		for _, n := range r.Counts.fields() {
			dst = protowire.AppendVarint(dst, uint64(*n))
		}
		return dst
	}, setText: func(r *Record, b []byte) { _ = r.Counts.decode(b) }},
	number("omitted", func(r *Record) *uint32 { return &r.Omitted }),
	number("sessions", func(r *Record) *uint32 { return &r.Sessions }),
	number("found", func(r *Record) *uint32 { return &r.Found }),
	number("rejected", func(r *Record) *uint32 { return &r.Rejected }),
	number("last_start", func(r *Record) *uint64 { return &r.LastStart }),
	truth("erased", func(r *Record) *bool { return &r.Erased }),
	octets("sketch", func(r *Record) []byte { return r.Sketch }, func(r *Record, b []byte) { r.Sketch = b }),
	octets("server", func(r *Record) []byte { return r.Server }, func(r *Record, b []byte) { r.Server = b }),
	octets("front_end", func(r *Record) []byte { return r.FrontEnd }, func(r *Record, b []byte) { r.FrontEnd = b }),
	octets("origin", func(r *Record) []byte { return r.Origin }, func(r *Record, b []byte) { r.Origin = b }),
}

// stepFields describes the columns with a value for each step of one kind. Columns are
// named after the kind and the field, such as "rcpt.text".
var stepFields = []field[Step]{
	octets("text", func(s *Step) []byte { return s.Text }, func(s *Step, b []byte) { s.Text = b }),
	octets("arg", func(s *Step) []byte { return s.Arg }, func(s *Step, b []byte) { s.Arg = b }),
	number("result", func(s *Step) *smtp.Result { return &s.Result }),
	number("code", func(s *Step) *uint32 { return &s.Code }),
	octets("reply", func(s *Step) []byte { return s.Reply }, func(s *Step, b []byte) { s.Reply = b }),
	number("size", func(s *Step) *uint64 { return &s.Size }),
	number("msgid", func(s *Step) *uint32 { return &s.MsgID }),
	number("phase", func(s *Step) *smtp.Phase { return &s.Phase }),
	number("decision", func(s *Step) *smtp.Decision { return &s.Decision }),
	truth("enforced", func(s *Step) *bool { return &s.Enforced }),
	truth("banned", func(s *Step) *bool { return &s.Banned }),
	number("session", func(s *Step) *uint64 { return &s.Session }),
	{name: "prefix", text: func(dst []byte, s *Step) []byte {
		if !s.Prefix.IsValid() {
			return dst
		}
		return append(append(dst, s.Prefix.Addr().AsSlice()...), byte(s.Prefix.Bits()))
	}, setText: func(s *Step, b []byte) { s.Prefix, _ = decodePrefix(b) }},
	{name: "until", num: func(s *Step) uint64 { return uint64(max(s.Until.Unix(), 0)) }, setNum: func(s *Step, v uint64) { s.Until = decodeUntil(v) }},
	{name: "exempt", text: func(dst []byte, s *Step) []byte { return append(dst, s.Exempt...) }, setText: func(s *Step, b []byte) { s.Exempt = string(b) }},
	octets("org", func(s *Step) []byte { return s.Org }, func(s *Step, b []byte) { s.Org = b }),
	octets("by", func(s *Step) []byte { return s.By }, func(s *Step, b []byte) { s.By = b }),
	octets("match", func(s *Step) []byte { return s.Match }, func(s *Step, b []byte) { s.Match = b }),
	octets("confidence", func(s *Step) []byte { return s.Confidence }, func(s *Step, b []byte) { s.Confidence = b }),
	number("rule", func(s *Step) *uint32 { return &s.Rule }),
	number("times", func(s *Step) *uint32 { return &s.Times }),
	number("count", func(s *Step) *uint32 { return &s.Count }),
	number("most", func(s *Step) *uint32 { return &s.Most }),
	number("first", func(s *Step) *uint64 { return &s.First }),
}

func appendIP(dst []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return dst
	}
	if a.Addr().Is4() {
		ip := a.Addr().As4()
		return append(dst, ip[:]...)
	}
	ip := a.Addr().As16()
	return append(dst, ip[:]...)
}

// These columns are in neither recordFields nor stepFields.
const (
	columnKinds = "kinds" // by record: the kinds of its steps, one byte for each step
	columnExact = "exact" // by record: the number of exact gaps
	columnRest  = "rest"  // remainders of all exact gaps; see stepClock
	columnAt    = "at"    // for each kind: the codes of the gaps before its steps
	columnClass = "class" // for records and for each kind: the class of each row
)

// numKinds is the number of kinds that a block can hold.
const numKinds = 32

// kindNames maps kinds to the prefixes of column names.
var kindNames = [numKinds]string{
	KindNone: "none", KindGreeting: "greeting", KindHelo: "helo", KindTLS: "tls", KindAuth: "auth", KindMail: "mail", KindRcpt: "rcpt", KindData: "data",
	KindCommit: "commit", KindRollback: "rollback", KindCommand: "command", KindInput: "input", KindTimeout: "timeout", KindQuit: "quit",
	KindFinding: "finding", KindVerdict: "verdict", KindFilter: "filter", KindTag: "tag", KindBan: "ban", KindReference: "reference",
	KindListed: "listed",
}

// columnNames holds the column names of the records or of one kind of step.
type columnNames struct {
	at    string   // column of gaps before steps
	index string   // column of the rows' classes
	each  []string // by field: column with a value for each row
	class []string // by field: column with a value for each class; empty if the field is never stored by class
}

// nameColumns returns the names of columns with a prefix. For example, the column "rcpt.text" has a
// value for each step of the kind rcpt, and "rcpt:text" has a value for each class of these steps.
func nameColumns[T any](prefix string, fields []field[T]) columnNames {
	dot := prefix
	if dot != "" {
		dot += "."
	}
	n := columnNames{at: dot + columnAt, index: dot + columnClass}
	for i := range fields {
		class := prefix + ":" + fields[i].name
		if fields[i].own {
			class = ""
		}
		n.each, n.class = append(n.each, dot+fields[i].name), append(n.class, class)
	}
	return n
}

// headNames lists the column names of records. stepNames lists the column names of steps
// by kind.
var headNames, stepNames = func() (columnNames, [numKinds]columnNames) {
	var steps [numKinds]columnNames
	for k := range steps {
		if kindNames[k] == "" {
			kindNames[k] = "kind-" + strconv.Itoa(k)
		}
		steps[k] = nameColumns(kindNames[k], stepFields)
	}
	return nameColumns("", recordFields), steps
}()

// A columnID identifies the field that a column stores.
type columnID struct {
	kind  int // headColumn, or a Kind
	role  columnRole
	field int // index in the table's fields
}

// headColumn is the kind for record columns.
const headColumn = -1

// A columnRole describes the purpose of a column.
type columnRole uint8

const (
	roleKinds columnRole = iota
	roleExact
	roleRest
	roleAt
	roleIndex
	roleEach
	roleClass
)

// columnIDs maps column names to their IDs.
var columnIDs = func() map[string]columnID {
	ids := map[string]columnID{columnKinds: {role: roleKinds}, columnExact: {role: roleExact}, columnRest: {role: roleRest}}
	add := func(kind int, n *columnNames) {
		ids[n.index] = columnID{kind, roleIndex, 0}
		for i := range n.each {
			ids[n.each[i]], ids[n.class[i]] = columnID{kind, roleEach, i}, columnID{kind, roleClass, i}
		}
		delete(ids, "")
	}
	add(headColumn, &headNames)
	for k := range stepNames {
		add(k, &stepNames[k])
		ids[stepNames[k].at] = columnID{k, roleAt, 0}
	}
	return ids
}()
