package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
	"scanwatch/store"
)

// State is the subset of store.State that commands use.
type State interface {
	Flush(context.Context) error
	Snapshot() (*store.Snapshot, error)
}

// maxReason is the maximum length of a ban's reason in bytes.
const maxReason = 200

// maxListed is the maximum number of bans in an answer.
const maxListed = 1000

// MemoryCommands returns the commands for the state kept across sessions. now returns
// the event time in microseconds since 1970. enforced reports whether the policy is
// enforced. changed is called for each new ban and, with Revoked set, for each revoked
// ban.
func MemoryCommands(m *memory.Memory, s State, now func() int64, enforced func() bool, changed func(memory.Ban)) []Command {
	observing := func() string {
		if enforced() {
			return ""
		}
		return "mode observe is in effect, and bans are not enforced; see scanwatch status"
	}
	return []Command{
		learnCommand(m, now),
		{"ban", 3, func(ctx context.Context, a *Answer, args []string) error {
			p, _, err := prefix.Parse(args[0])
			if err != nil {
				return err
			}
			seconds, err := strconv.ParseUint(args[1], 10, 31)
			if err != nil || seconds == 0 {
				return fmt.Errorf("parse seconds %q: not a positive number", args[1])
			}
			reason, err := url.QueryUnescape(args[2])
			if err != nil || len(reason) > maxReason {
				return fmt.Errorf("parse reason: longer than %d bytes or not escaped", maxReason)
			}
			shorter := shortened(m, p.Masked(), time.Duration(seconds)*time.Second, now())
			b, ok := m.Bans.AddPrefix(p.Masked(), time.Duration(seconds)*time.Second, reason, now())
			if !ok {
				return errors.New("too many bans of networks; use a table in the configuration for long lists")
			}
			changed(b)
			return a.JSON(Banned{Bans: []memory.Ban{b}, Note: notes(shorter, observing(), saved(ctx, s))})
		}},
		unbanCommand(m, s, now, changed),
		{"days", 0, func(ctx context.Context, a *Answer, _ []string) error {
			ctx, cancel := context.WithTimeout(ctx, writeTimeout)
			defer cancel()
			_ = s.Flush(ctx) // Flush returns once the rows on disk are loaded
			return a.JSON(daysAnswer{m.Days.List()})
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

// unbanCommand returns the command that revokes bans and also resets the banned hosts'
// counters.
func unbanCommand(m *memory.Memory, s State, now func() int64, changed func(memory.Ban)) Command {
	return Command{"unban", 2, func(ctx context.Context, a *Answer, args []string) error {
		p, _, err := prefix.Parse(args[0])
		if err != nil {
			return err
		}
		within := args[1] == Within
		if !within && args[1] != Exact {
			return fmt.Errorf("unban: %q is neither %s nor %s", args[1], Exact, Within)
		}
		// Wait until the rows on disk are loaded, because a row loaded later would
		// restore a revoked ban.
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		_ = s.Flush(ctx)
		ended := m.Bans.Revoke(p.Masked(), within, now())
		if within || len(ended) > 0 || p.Masked() == memory.Source(p.Addr()) {
			m.Forget(p.Masked())
		}
		for _, b := range ended {
			changed(b)
		}
		answer, more, still := Banned{Bans: ended}, "", ""
		if len(ended) > maxListed {
			answer.Bans = ended[:maxListed]
			more = fmt.Sprintf("and %d more", len(ended)-maxListed)
		}
		if b := m.Bans.Covering(p.Addr(), now()); len(b) > 0 {
			still = "still within the ban of " + prefix.String(b[0].Prefix)
		}
		answer.Elsewhere = m.Bans.Disclaim(p.Masked(), within, ended, now()) && len(ended) == 0
		answer.Note = notes(more, still, saved(ctx, s))
		return a.JSON(answer)
	}}
}

// shortened returns a note if a ban of duration d replaces a longer ban.
func shortened(m *memory.Memory, p netip.Prefix, d time.Duration, now int64) (note string) {
	at := time.UnixMicro(now)
	m.Bans.Each(func(b memory.Ban) {
		if b.Prefix == p && b.Origin == "" && !b.Observe && !b.Revoked && b.Until.After(at.Add(d)) {
			note = fmt.Sprintf("it replaces the ban by %s until %s, which is longer", text.Escape(b.Rule), b.Until.Format("2006-01-02 15:04 MST"))
		}
	})
	return note
}

// saved writes the state to disk, and returns a note if that fails.
func saved(ctx context.Context, s State) string {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := s.Flush(ctx); err != nil {
		return fmt.Sprintf("this takes effect now, but will be lost when the filter stops, because the state cannot be written: %v", err)
	}
	return ""
}

func notes(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), "; ")
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
