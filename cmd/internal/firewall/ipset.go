package firewall

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/rules"
)

// An ipset is a group of ipset(8) sets that share a name prefix.
type ipset struct{ sets []set }

// maxTimeout is the maximum timeout of ipset in seconds.
const maxTimeout = 2147483

// openIPSet returns the target for `to ipset "prefix"`.
func openIPSet(c *rules.Companion) (*target, error) {
	if !plainName(c.Argument, 27) {
		return nil, fmt.Errorf("target ipset %q: must be the prefix of the sets, at most 27 letters, digits, underscores, hyphens and dots", c.Argument)
	}
	s := &ipset{setsOf(c.Argument)}
	return &target{list: s.list, change: s.change, intact: s.intact, ends: true, longest: maxTimeout * time.Second,
		pause: 200 * time.Millisecond, retry: checkEvery}, nil
}

// creation returns the command that creates s.
func (s *set) creation() string {
	kind, family := "hash:ip", "inet"
	if s.nets {
		kind = "hash:net"
	}
	if s.v6 {
		family = "inet6"
	}
	return fmt.Sprintf("ipset create %s %s family %s timeout 0 maxelem %d", s.name, kind, family, 2*defaultMax)
}

// suits returns an error if line, from the output of ipset list, describes a different kind of set.
func (s *set) suits(line []byte) error {
	has, is := strings.CutPrefix(string(line), "create "+s.name+" ")
	want := strings.Fields(strings.TrimPrefix(s.creation(), "ipset create "+s.name+" "))[:4] // kind, family and timeout
	for _, word := range want {
		if is && !slices.Contains(strings.Fields(has), word) {
			return fmt.Errorf("set %s has no %s; remove it with ipset destroy %s, and create it with: %s", s.name, word, s.name, s.creation())
		}
	}
	return nil
}

func (s *ipset) list(ctx context.Context) (map[netip.Prefix]time.Duration, error) {
	content := map[netip.Prefix]time.Duration{}
	for i := range s.sets {
		one := &s.sets[i]
		out, err := run(ctx, nil, "ipset", "save", one.name)
		if err != nil {
			return nil, s.explain(err, one)
		}
		for line := range bytes.Lines(out) {
			if err := one.suits(line); err != nil {
				return nil, err
			}
			words := strings.Fields(string(line)) // add SET ADDRESS timeout SECONDS
			if len(words) < 3 || words[0] != "add" {
				continue
			}
			p, ok := parsePrefix(words[2])
			if !ok {
				continue
			}
			content[p] = forever
			if len(words) > 4 && words[3] == "timeout" {
				if n, err := strconv.ParseInt(words[4], 10, 32); err == nil && n > 0 {
					content[p] = time.Duration(n) * time.Second
				}
			}
		}
	}
	return content, nil
}

// explain adds a remedy to an error caused by a missing set, a full set or missing
// privileges.
func (s *ipset) explain(err error, one *set) error {
	switch {
	case says(err, "does not exist"):
		return fmt.Errorf("set %s does not exist; create it with: %s", one.name, one.creation())
	case says(err, "is full"):
		return fmt.Errorf("%w; raise maxelem of the sets, or set max of the companion", err)
	case says(err, "Operation not permitted"):
		return fmt.Errorf("%w; the service needs the capability CAP_NET_ADMIN", err)
	}
	return err
}

// change applies changes, one per line. With -exist, ipset updates the timeout of
// entries that exist, and ignores the removal of entries that have expired.
func (s *ipset) change(ctx context.Context, remove []netip.Prefix, add []entry) error {
	var b bytes.Buffer
	w := bufio.NewWriter(&b)
	for _, p := range remove {
		fmt.Fprintf(w, "del %s %s\n", s.setOf(p), address(p))
	}
	for _, e := range add {
		fmt.Fprintf(w, "add %s %s timeout %d\n", s.setOf(e.prefix), address(e.prefix), max(int64(e.left/time.Second), 1))
	}
	w.Flush()
	_, err := run(ctx, &b, "ipset", "-exist", "restore")
	return s.explain(err, &s.sets[0])
}

func (s *ipset) setOf(p netip.Prefix) string {
	for i := range s.sets {
		if s.sets[i].takes(p) {
			return s.sets[i].name
		}
	}
	return "" // impossible: the sets cover all prefixes
}

// intact reports whether the sets have at least the expected number of entries.
func (s *ipset) intact(ctx context.Context, least func() int) (bool, error) {
	n := 0
	for i := range s.sets {
		out, err := run(ctx, nil, "ipset", "-terse", "list", s.sets[i].name)
		if err != nil {
			return false, s.explain(err, &s.sets[i])
		}
		_, rest, _ := strings.Cut(string(out), "Number of entries: ")
		number, _, _ := strings.Cut(rest, "\n")
		entries, err := strconv.Atoi(strings.TrimSpace(number))
		if err != nil {
			return false, nil // this version of ipset does not report the number
		}
		n += entries
	}
	return n >= least(), nil
}

// address returns p in firewall notation, in which hosts have no prefix length.
func address(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// parsePrefix parses a prefix in the notation of address.
func parsePrefix(s string) (p netip.Prefix, ok bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), a.Zone() == ""
	}
	p, err := netip.ParsePrefix(s)
	return p.Masked(), err == nil
}
