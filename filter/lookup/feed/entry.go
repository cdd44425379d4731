package feed

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"scanwatch/internal/prefix"
	escape "scanwatch/internal/text"
)

// A collector collects the entries of a file.
type collector struct {
	result *Result
	value  string // value of the format's option

	lines      int  // number of lines in the file, at most MaxEntries
	malformed  int  // number of rejected entries that would be invalid in any list
	overflow   bool // the file has more than MaxEntries entries
	mayBeEmpty bool
	private    bool            // addresses of local networks are valid
	others     map[string]bool // values in the file that were not selected by the option
}

// judge returns an error if the entries show that the file is not a list of this format.
func (c *collector) judge(f *Format) error {
	r := c.result
	switch {
	case c.overflow:
		return fmt.Errorf("more than %d entries", MaxEntries)
	case r.Len() == 0 && r.LeftOut > 0:
		return fmt.Errorf("none of %d entries has the %s %q; the values in the file are: %s", r.LeftOut, f.Option, c.value, c.otherValues())
	case r.Len() == 0 && c.mayBeEmpty:
		r.Warnings.add(Problem{Why: "the list is empty"})
		return nil
	case r.Len() == 0 && r.Refused.Total > 0:
		return fmt.Errorf("none of %d entries is valid; the first: %s", r.Refused.Total, r.Refused.First[0])
	case r.Len() == 0:
		return errors.New("no entries; the file may be an error page or truncated")
	case c.malformed > r.Len():
		return fmt.Errorf("not a list of this format: %d entries are invalid, %d are valid; the first invalid entry: %s",
			c.malformed, r.Len(), r.Refused.First[0])
	}
	return nil
}

// wants reports whether the option of the format selects an entry with the given values. wants
// counts the entries that are not selected.
func (c *collector) wants(values ...string) bool {
	if c.value == All || slices.Contains(values, c.value) {
		return true
	}
	c.result.LeftOut++
	if c.others == nil {
		c.others = make(map[string]bool)
	}
	for _, value := range values {
		if len(c.others) < maxProblems {
			c.others[printable(value)] = true
		}
	}
	return false
}

func (c *collector) otherValues() string {
	return strings.Join(slices.Sorted(maps.Keys(c.others)), ", ")
}

// room reports whether another entry fits into the result.
func (c *collector) room() bool {
	c.overflow = c.overflow || c.result.Len() >= MaxEntries
	return !c.overflow
}

func (c *collector) refuse(line int, text, why string) {
	c.result.Refused.add(Problem{Line: line, Text: text, Why: why})
}

// doubt warns about an entry that the operator may not have intended.
func (c *collector) doubt(line int, text, why string) {
	c.result.Warnings.add(Problem{Line: line, Text: text, Why: why})
	c.result.Doubts.add(Problem{Line: line, Text: text, Why: why})
}

// incomplete warns that the file may lack entries.
func (c *collector) incomplete(line int, why string) {
	c.result.Warnings.add(Problem{Line: line, Why: why})
	c.result.Incomplete = why
}

// Widest returns the length of the widest prefix that a list may contain. Internet registries
// allocate at most a /8 for IPv4 and a /19 for IPv6.
func Widest(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 19
}

// malform rejects a text that would not be a valid entry in any list.
func (c *collector) malform(line int, text, why string) {
	c.malformed++
	c.refuse(line, text, why)
}

// address adds an address, a prefix or a range.
func (c *collector) address(line int, text string) {
	if list, n := leadingRange(text); n > 0 && n == len(text) {
		for _, p := range list {
			c.prefix(line, text, p, false)
		}
		return
	}
	p, dropped, err := prefix.Parse(text)
	if err != nil {
		c.malform(line, text, notPrefix)
		return
	}
	c.prefix(line, text, p, dropped)
}

// notPrefix is the reason for rejecting a text that is neither an address nor a prefix.
const notPrefix = "not an address or prefix"

func (c *collector) prefix(line int, text string, p netip.Prefix, dropped bool) {
	if p.Bits() < Widest(p.Addr()) && isUsed(p) {
		c.result.Wide++
	}
	if why := Forbidden(p); why != "" && !(c.private && isLocal(p)) {
		c.refuse(line, text, why)
		return
	}
	switch widest := Widest(p.Addr()); {
	case p.Bits() < widest && !isLocal(p):
		c.refuse(line, text, fmt.Sprintf("wider than /%d; write smaller networks", widest))
		return
	case dropped:
		c.doubt(line, text, "bits after the prefix length are ignored: "+p.String())
	}
	if c.room() {
		if c.result.Prefixes == nil {
			c.result.Prefixes = make([]netip.Prefix, 0, c.lines) // most lists have one entry per line
		}
		c.result.Prefixes = append(c.result.Prefixes, p)
	}
}

func (c *collector) asn(line int, number uint32) {
	// RFC 7607 and RFC 7300 reserve the AS numbers 0, 65535 and 4294967295. Numbers for
	// documentation and private use are accepted, because they do no harm.
	if number == 0 || number == 1<<16-1 || number == 1<<32-1 {
		c.refuse(line, "AS"+strconv.FormatUint(uint64(number), 10), "a reserved AS number")
		return
	}
	if c.room() {
		c.result.ASNs = append(c.result.ASNs, number)
	}
}

// name adds a host name or a suffix.
func (c *collector) name(line int, text string) {
	name := strings.TrimSuffix(text, ".")
	if !validName(name) {
		c.malform(line, text, "not an address, AS number or name")
		return
	}
	if !strings.Contains(name, ".") {
		c.result.Warnings.add(Problem{Line: line, Text: text, Why: "a name without a dot; it may be a greeting, or not an entry at all"})
	}
	if c.room() {
		c.result.Names = append(c.result.Names, strings.ToLower(name))
	}
}

// validName reports whether name is a host name or a suffix. A suffix starts with "." or "*.". A
// host name may contain underscores.
func validName(name string) bool {
	if below, ok := strings.CutPrefix(name, "*."); ok {
		name = below
	} else {
		name = strings.TrimPrefix(name, ".")
	}
	if name == "" || len(name) > 253 {
		return false
	}
	label := 0
	for i := range len(name) {
		switch c := name[i]; {
		case c == '.':
			if label == 0 {
				return false
			}
			label = 0
			continue
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			label++
		default:
			return false
		}
		if label > 63 {
			return false
		}
	}
	return label > 0
}

// parseASN parses an AS number such as AS64496. If letters is set, the letters AS are required.
func parseASN(text string, letters bool) (uint32, bool) {
	digits := strings.Trim(text, `"`)
	if len(digits) > 2 && strings.EqualFold(digits[:2], "AS") {
		digits = digits[2:]
	} else if letters {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 32)
	return uint32(number), err == nil
}

type specialRow struct {
	prefix netip.Prefix
	what   string
}

// special lists the special-purpose networks (RFC 6890) that a feed must not contain. Documentation
// prefixes are not included, because no host uses them.
var special = []specialRow{
	{netip.MustParsePrefix("0.0.0.0/8"), "reserved"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), "private (carrier NAT)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private"},
	{netip.MustParsePrefix("192.0.0.0/24"), "reserved"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private"},
	{netip.MustParsePrefix("198.18.0.0/15"), "reserved (benchmarks)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("fc00::/7"), "private"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// isLocal reports whether p is in the address space of local networks.
func isLocal(p netip.Prefix) bool {
	return slices.ContainsFunc(special, func(s specialRow) bool {
		local := strings.HasPrefix(s.what, "private") || s.what == "loopback" || s.what == "link-local"
		return local && s.prefix.Bits() <= p.Bits() && s.prefix.Contains(p.Addr())
	})
}

// isUsed reports whether p contains an address that a host on the internet may have.
func isUsed(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < unused.Bits() || !unused.Contains(p.Addr())
	}
	return p.Overlaps(global)
}

// unused is the part of the IPv4 address space that is multicast or reserved and has no hosts.
var unused = netip.MustParsePrefix("224.0.0.0/3")

// global is the part of the IPv6 address space that is used on the internet (RFC 4291 section 2.4).
var global = netip.MustParsePrefix("2000::/3")

// Forbidden returns why a list must not contain p, or "" if it may.
func Forbidden(p netip.Prefix) string {
	if p.Bits() == 0 {
		return "the default route: it covers every address"
	}
	for _, s := range special {
		if !s.prefix.Contains(p.Addr()) && !p.Contains(s.prefix.Addr()) { // netip.Prefix.Overlaps would take four times as long
			continue
		}
		if s.prefix.Bits() <= p.Bits() {
			return s.what + " address space"
		}
		return "covers " + s.what + " address space, " + s.prefix.String()
	}
	if p.Addr().Is6() && (!global.Contains(p.Addr()) || p.Bits() < global.Bits()) {
		return "reserved address space"
	}
	return ""
}

// printable returns the start of text in an escaped form for terminals and logs.
func printable(text string) string {
	const limit = 80
	if len(text) > limit {
		return escape.Escape(text[:limit]) + "..."
	}
	return escape.Escape(text)
}
