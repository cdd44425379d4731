package feed

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A collector takes the entries of a file, good and bad.
type collector struct {
	result *Result
	value  string // of the option of the format

	lines      int  // of the file, at most MaxEntries
	malformed  int  // refused entries that are nothing a list could hold
	overflow   bool // there were more than MaxEntries
	mayBeEmpty bool
	others     map[string]bool // values of the option that were found in the file
}

// judge tells whether what was collected can be a list.
func (c *collector) judge(f *Format) error {
	r := c.result
	switch {
	case c.overflow:
		return fmt.Errorf("more than %d entries", MaxEntries)
	case r.Len() == 0 && r.LeftOut > 0:
		return fmt.Errorf("no entry of %s %q among %d; there are: %s", f.Option, c.value, r.LeftOut, c.otherValues())
	case r.Len() == 0 && c.mayBeEmpty:
		r.Warnings.add(Problem{Why: "the list is empty"})
		return nil
	case r.Len() == 0 && r.Refused.Total > 0:
		return fmt.Errorf("none of %d entries can be used, the first: %s", r.Refused.Total, r.Refused.First[0])
	case r.Len() == 0:
		return errors.New("no entries: an error page, or a file cut short")
	case c.malformed > r.Len():
		return fmt.Errorf("no list of this format: %d entries cannot be read, %d can; the first: %s",
			c.malformed, r.Len(), r.Refused.First[0])
	}
	return nil
}

// wants tells whether the option asks for entries of the given value, and counts
// those it does not ask for.
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

// room tells whether another entry fits.
func (c *collector) room() bool {
	c.overflow = c.overflow || c.result.Len() >= MaxEntries
	return !c.overflow
}

func (c *collector) refuse(line int, text, why string) {
	c.result.Refused.add(Problem{Line: line, Text: text, Why: why})
}

// malform refuses what is no entry at all.
func (c *collector) malform(line int, text, why string) {
	c.malformed++
	c.refuse(line, text, why)
}

// address takes an address or a prefix.
func (c *collector) address(line int, text string) {
	p, err := parsePrefix(text)
	if err != nil {
		c.malform(line, text, err.Error())
		return
	}
	c.prefix(line, text, p)
}

func (c *collector) prefix(line int, text string, p netip.Prefix) {
	masked := p.Masked()
	if why := Forbidden(masked); why != "" {
		c.refuse(line, text, why)
		return
	}
	warn := func(why string) { c.result.Warnings.add(Problem{Line: line, Text: text, Why: why}) }
	if masked != p {
		warn("bits beyond the prefix length are ignored: " + masked.String())
	}
	if p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 19 {
		warn("a very wide prefix")
	}
	if c.room() {
		if c.result.Prefixes == nil {
			c.result.Prefixes = make([]netip.Prefix, 0, c.lines) // most lists have one on each line
		}
		c.result.Prefixes = append(c.result.Prefixes, masked)
	}
}

// asn takes an AS number that is known to be one.
func (c *collector) asn(line int, number uint32) {
	// RFC 7607, RFC 7300: never in use. Numbers for documentation and private use
	// do no harm.
	if number == 0 || number == 1<<16-1 || number == 1<<32-1 {
		c.refuse(line, "AS"+strconv.FormatUint(uint64(number), 10), "a reserved AS number")
		return
	}
	if c.room() {
		c.result.ASNs = append(c.result.ASNs, number)
	}
}

// name takes a host name or a suffix.
func (c *collector) name(line int, text string) {
	name := strings.TrimSuffix(text, ".")
	if !validName(name) {
		c.malform(line, text, "neither an address, nor an AS number, nor a name")
		return
	}
	if !strings.Contains(name, ".") {
		c.result.Warnings.add(Problem{Line: line, Text: text, Why: "a name without a dot: a greeting, or a stray word"})
	}
	if c.room() {
		c.result.Names = append(c.result.Names, strings.ToLower(name))
	}
}

// validName accepts names as hosts bear them, underscores included, after
// nothing, "." or "*.".
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

// parsePrefix reads an address or a prefix, mapped IPv6 as the IPv4 it means.
func parsePrefix(text string) (netip.Prefix, error) {
	if !strings.Contains(text, "/") {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, errors.New("not an address")
		}
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, errors.New("not an address or prefix")
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}

// parseASN reads AS64496, and 64496 unless the letters are needed.
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

// special is address space that no list from the internet may name, by the
// registries of RFC 6890. Documentation ranges, where no host can be, are let
// through: examples and tests live there.
var special = []struct {
	prefix netip.Prefix
	what   string
}{
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

// global is all of IPv6 that is in use on the internet (RFC 4291 section 2.4).
var global = netip.MustParsePrefix("2000::/3")

// Forbidden says why a list must not hold p, or nothing.
func Forbidden(p netip.Prefix) string {
	if p.Bits() == 0 {
		return "the default route: it covers everybody"
	}
	for _, s := range special {
		if !s.prefix.Contains(p.Addr()) && !p.Contains(s.prefix.Addr()) { // Overlaps takes four times as long
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

// printable makes text from a file fit for a terminal and a log.
func printable(text string) string {
	const limit = 80
	if len(text) > limit {
		text = text[:limit] + "..."
	}
	quoted := strconv.QuoteToASCII(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
