package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
)

// MaxWait is the longest time that the bans command waits for a change.
const MaxWait = 20 * time.Second

// pollBans is the interval at which a waiting command checks for changes.
const pollBans = 100 * time.Millisecond

// A BanList is the header of the answer to "bans". The bans follow it.
type BanList struct {
	Generation uint64 `json:"generation"` // to send with the next request
	// Full is set if the list is complete: any ban not listed has ended.
	Full bool `json:"full"`
	// Enforced is false in observe mode, when no bans are in force.
	Enforced bool `json:"enforced"`
	// Entries is the number of lines that follow.
	Entries int `json:"entries"`
}

// A BanEntry describes a ban that is active or has ended.
type BanEntry struct {
	Prefix  netip.Prefix `json:"prefix"`
	Seconds int64        `json:"seconds"`           // seconds until the ban ends; 0 if it has ended
	Rule    string       `json:"rule,omitempty"`    // rule or operator's reason
	Session string       `json:"session,omitempty"` // session that caused the ban
	// Spared is set if firewalls must not block the hosts despite their ban.
	Spared bool `json:"spared,omitempty"`
}

type endOfBans struct {
	End     bool `json:"end"`
	Entries int  `json:"entries"`
}

// BansCommand returns the bans command, which sends the changes since the client's generation. If
// the filter does not know that generation, it sends all bans. If there are no changes, the command
// waits for one. spared returns a function that reports whether the hosts in one of the given
// prefixes must not be blocked.
func BansCommand(b *memory.Bans, s State, now func() int64, spared func([]netip.Prefix) func(netip.Prefix) bool, enforced func() bool) Command {
	start := time.Now()
	return Command{"bans", 2, func(ctx context.Context, a *Answer, args []string) error {
		since, err := strconv.ParseUint(args[0], 10, 64)
		if err != nil {
			return fmt.Errorf("parse generation %q: not a number", args[0])
		}
		seconds, err := strconv.ParseUint(args[1], 10, 31)
		if wait := time.Duration(seconds) * time.Second; err != nil || wait > MaxWait {
			return fmt.Errorf("parse seconds %q: not a number up to %d", args[1], int(MaxWait/time.Second))
		}
		deadline := time.Now().Add(time.Duration(seconds) * time.Second)
		changed, generation, known := b.Changed(since)
		for known && len(changed) == 0 && time.Now().Before(deadline) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pollBans):
			}
			changed, generation, known = b.Changed(since)
		}
		list := BanList{Generation: generation, Full: !known, Enforced: enforced()}
		if !list.Enforced {
			return sendBans(a, list, nil, b, now(), spared(nil))
		}
		if !known {
			if err := loaded(ctx, b, s, start); err != nil {
				return err
			}
		}
		// spared scans all known hosts for each network.
		if !known || slices.ContainsFunc(changed, func(p netip.Prefix) bool { return !p.IsSingleIP() }) {
			done, err := a.peer.turn(ctx)
			if err != nil {
				return err
			}
			defer done()
		}
		if !known {
			changed = allBans(b, now)
		}
		list.Entries = len(changed)
		return sendBans(a, list, changed, b, now(), spared(changed))
	}}
}

// Names are the address and the names of a host in a session; see SparedCommand.
type Names struct {
	Addr netip.Addr `json:"ip"`
	RDNS string     `json:"rdns,omitempty"` // proven by FCrDNS; empty if unknown
	Helo string     `json:"helo,omitempty"` // empty if unknown
}

// SparedCommand returns the command that reports whether a companion must not act against a host;
// see BansCommand. A host may also be exempt because of a name that it has used.
//
// The answer also contains the mode.
func SparedCommand(spared func(Names) bool, enforced func() bool) Command {
	return Command{"spared", 3, func(_ context.Context, a *Answer, args []string) error {
		p, _, err := prefix.Parse(args[0])
		if err != nil {
			return err
		}
		if !p.IsSingleIP() { // a check of a network would take longer
			return fmt.Errorf("%s is not an address", args[0])
		}
		rdns, err1 := url.QueryUnescape(strings.TrimPrefix(args[1], "="))
		helo, err2 := url.QueryUnescape(strings.TrimPrefix(args[2], "="))
		if err := errors.Join(err1, err2); err != nil {
			return errors.New("parse name: not URL-escaped")
		}
		return a.JSON(sparedAnswer{spared(Names{p.Addr(), rdns, helo}), !enforced()})
	}}
}

type sparedAnswer struct {
	Spared  bool `json:"spared"`
	Observe bool `json:"observe"`
}

// Spared reports whether a companion must not act against a host, and whether the filter is in
// observe mode.
func (c *Client) Spared(host Names) (spared, observe bool, err error) {
	var a sparedAnswer
	err = c.ask(&a, "spared", host.Addr.String(), "="+url.QueryEscape(host.RDNS), "="+url.QueryEscape(host.Helo))
	return a.Spared, a.Observe, err
}

// loadPatience is the time after startup in which errors reading the bans from disk are
// considered temporary.
const loadPatience = 2 * time.Minute

// loaded waits until the bans on disk are loaded. Without the wait, companions would lift
// active bans. If the state remains unreadable, loaded eventually gives up, and
// companions receive only the newer bans.
func loaded(ctx context.Context, b *memory.Bans, s State, start time.Time) error {
	if b.Loaded() {
		return nil // a flush would also write all changes
	}
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	err := s.Flush(ctx)
	late := time.Since(start) > loadPatience && !errors.Is(err, context.DeadlineExceeded)
	if b.Loaded() || late {
		return nil
	}
	return fmt.Errorf("the bans on disk are not loaded yet: %w", cmp.Or(err, errors.New("try again")))
}

// allBans returns the prefixes of all enforced bans that firewalls may contain.
func allBans(b *memory.Bans, now func() int64) (all []netip.Prefix) {
	at := time.UnixMicro(now())
	others := make(map[netip.Prefix]bool) // banned by other hosts
	b.Each(func(ban memory.Ban) {
		switch {
		case ban.Observe || !ban.Firewall.After(at):
		case ban.Origin != "":
			others[ban.Prefix] = true
		default:
			all = append(all, ban.Prefix)
		}
	})
	if len(others) > 0 {
		for _, p := range all {
			delete(others, p)
		}
	}
	return slices.AppendSeq(all, maps.Keys(others))
}

// chunk is the number of bytes per write.
const chunk = 32 << 10

func sendBans(a *Answer, list BanList, all []netip.Prefix, b *memory.Bans, now int64, spared func(netip.Prefix) bool) error {
	if err := a.JSON(list); err != nil {
		return err
	}
	var buf []byte
	flush := func() error {
		_, err := a.Write(buf)
		buf = buf[:0]
		return err
	}
	for _, p := range all {
		e := BanEntry{Prefix: p}
		if ban, ok := b.Enforced(p, now); ok && ban.Firewall.UnixMicro() > now {
			e.Seconds = max((ban.Firewall.UnixMicro()-now)/1e6, 1)
			e.Rule, e.Spared = ban.Rule+ban.On(), spared(p)
			if ban.Session != 0 {
				e.Session = fmt.Sprintf("%016x", ban.Session)
			}
		}
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if buf = append(append(buf, line...), '\n'); len(buf) > chunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	line, _ := json.Marshal(endOfBans{true, len(all)})
	buf = append(append(buf, line...), '\n')
	return flush()
}

// Bans returns the changes to the bans since a generation, or all bans. If there are no
// changes, Bans waits at most MaxWait for one. Generation 0 returns all bans
// immediately.
func (c *Client) Bans(generation uint64, wait time.Duration) (list BanList, entries []BanEntry, err error) {
	if err := c.ask(&list, "bans", strconv.FormatUint(generation, 10), strconv.Itoa(int(wait/time.Second))); err != nil {
		return list, nil, err
	}
	const plausible = 1 << 20
	entries = make([]BanEntry, 0, min(max(list.Entries, 0), plausible))
	for {
		line, err := c.line()
		if err != nil {
			return list, nil, fmt.Errorf("read the bans: %w", noEOF(err))
		}
		var row struct {
			BanEntry
			End     bool `json:"end"`
			Entries int  `json:"entries"`
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			return list, nil, fmt.Errorf("read the bans: %w", err)
		}
		switch {
		case row.End && row.Entries != len(entries):
			return list, nil, fmt.Errorf("read the bans: %d of %d", len(entries), row.Entries)
		case row.End:
			return list, entries, nil
		case !row.Prefix.IsValid():
			return list, nil, errors.New("read the bans: a line without a prefix")
		}
		if n := len(entries); n > 0 && entries[n-1].Rule == row.Rule {
			row.Rule = entries[n-1].Rule // most bans share a few rule texts
		}
		entries = append(entries, row.BanEntry)
	}
}
