package control

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/store"
)

// State is what the server needs of a store.State.
type State interface {
	Flush(context.Context) error
	Snapshot() (*store.Snapshot, error)
}

// maxReason is the longest reason for a ban, in bytes.
const maxReason = 200

// maxTold is how many bans an answer lists.
const maxTold = 1000

// MemoryVerbs are the commands about what is remembered across sessions. Now is
// the time by the clock of events, in microseconds; enforced tells whether the
// policy acts; told is called with each ban that was made or ended.
func MemoryVerbs(m *memory.Memory, s State, now func() int64, enforced func() bool, told func(word string, b memory.Ban)) []Verb {
	note := func() string {
		if enforced() {
			return ""
		}
		return "the policy is in observe mode: nobody is turned away"
	}
	return []Verb{
		{"ban", 3, func(_ context.Context, a *Answer, args []string) error {
			p, err := plainPrefix(args[0])
			if err != nil {
				return err
			}
			seconds, err := strconv.ParseUint(args[1], 10, 31)
			if err != nil || seconds == 0 {
				return fmt.Errorf("%q is no number of seconds", args[1])
			}
			reason, err := url.QueryUnescape(args[2])
			if err != nil || len(reason) > maxReason {
				return fmt.Errorf("the reason is longer than %d bytes, or not escaped", maxReason)
			}
			b, ok := m.BanPrefix(p.Masked(), time.Duration(seconds)*time.Second, reason, now())
			if !ok {
				return fmt.Errorf("there are too many bans of networks already; use a table in the configuration for long lists")
			}
			told("banned", b)
			return a.JSON(Banned{[]memory.Ban{b}, note()})
		}},
		{"unban", 1, func(ctx context.Context, a *Answer, args []string) error {
			p, err := plainPrefix(args[0])
			if err != nil {
				return err
			}
			// What the disk still has to tell must not bring a ban back.
			ctx, cancel := context.WithTimeout(ctx, writeTimeout)
			defer cancel()
			_ = s.Flush(ctx)
			ended := m.Unban(p.Masked(), now())
			answer := Banned{Bans: ended}
			if len(ended) > maxTold {
				answer.Bans = ended[:maxTold]
				answer.Note = fmt.Sprintf("and %d more", len(ended)-maxTold)
			}
			for i, b := range m.Around(p.Addr(), now()) {
				if i == 0 {
					answer.Note += "it is still within the ban of " + b.Prefix.String()
				}
			}
			for _, b := range ended {
				told("unbanned", b)
			}
			return a.JSON(answer)
		}},
		{"days", 0, func(ctx context.Context, a *Answer, _ []string) error {
			ctx, cancel := context.WithTimeout(ctx, writeTimeout)
			defer cancel()
			_ = s.Flush(ctx) // so that what is on disk has been read
			return a.JSON(daysAnswer{m.Days()})
		}},
		{"state", 0, func(ctx context.Context, a *Answer, _ []string) error {
			ctx, cancel := context.WithTimeout(ctx, copyTimeout)
			defer cancel()
			if err := s.Flush(ctx); err != nil {
				return err
			}
			snap, err := s.Snapshot()
			if err != nil {
				return err
			}
			defer snap.Close()
			return sendSnapshot(a, snap)
		}},
	}
}

// plainPrefix reads a prefix; an IPv4 one within IPv6 would be nobody's.
func plainPrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil && p.Addr().Is4In6() {
		err = fmt.Errorf("%s: write it as an IPv4 prefix", s)
	}
	return p, err
}

func sendSnapshot(a *Answer, snap *store.Snapshot) error {
	if err := a.JSON(snapshotAnswer{snap.Segment.Name, snap.Segment.Size}); err != nil {
		return err
	}
	n, err := snap.WriteTo(a)
	if err == nil && n != snap.Segment.Size {
		err = io.ErrShortWrite
	}
	return err
}
