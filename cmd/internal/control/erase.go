package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"

	"scanwatch/filter/erase"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/store"
)

// Arguments of the forget command.
const (
	KeepBans = "keep-bans"
	AllBans  = "bans"
)

// An Eraser provides access to everything that the forget and erase commands change.
type Eraser struct {
	Dir    string // the state directory, where the hash key is
	Memory *memory.Memory
	State  interface {
		Flush(context.Context) error
		Compact(context.Context) error
	}
	Store interface {
		Rewrite(ctx context.Context, segment string, edit store.Edit) (int, error)
	}
	Sums func()       // flushes the aggregated sessions
	Now  func() int64 // event time in microseconds since 1970
}

// Forgotten is the answer to "forget".
type Forgotten struct {
	memory.Erased
	// Problem is the reason why state.db may still contain deleted rows.
	Problem string `json:"problem,omitempty"`
}

type erased struct {
	Changed int `json:"changed"`
}

// EraseCommands returns the commands that erase a person's data.
func EraseCommands(e Eraser) []Command {
	return []Command{
		{"forget", 2, func(ctx context.Context, a *Answer, args []string) error {
			who, err := parseSubject(args[0])
			if err != nil {
				return err
			}
			if args[1] != KeepBans && args[1] != AllBans {
				return fmt.Errorf("forget: %q is neither %s nor %s", args[1], KeepBans, AllBans)
			}
			ctx, cancel := context.WithTimeout(ctx, copyTimeout)
			defer cancel()
			if e.Sums != nil {
				e.Sums()
			}
			// Wait until all rows are loaded, because rows that are loaded later would
			// not be removed.
			if err := e.State.Flush(ctx); err != nil {
				return fmt.Errorf("the state cannot be written, and nothing was removed: %w", err)
			}
			answer := Forgotten{Erased: e.Memory.Erase(who.Rows(args[1] == AllBans), e.Now(), false)}
			if len(answer.Kept) > maxListed {
				answer.Kept = answer.Kept[:maxListed]
			}
			if err := e.State.Compact(ctx); err != nil {
				answer.Problem = err.Error()
			}
			return a.JSON(answer)
		}},
		{"erase", 2, func(ctx context.Context, a *Answer, args []string) error {
			who, err := parseSubject(args[1])
			if err != nil {
				return err
			}
			key, err := HashKey(e.Dir)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, copyTimeout)
			defer cancel()
			n, err := e.Store.Rewrite(ctx, args[0], erase.New(who, key, e.Memory.Recipients.Separator()).Edit)
			if err != nil {
				return err
			}
			return a.JSON(erased{n})
		}},
	}
}

// HashKey returns the hash key in a state directory. If there is no key, the records contain no
// hashes, and the result is nil.
func HashKey(dir string) ([]byte, error) {
	key, err := privacy.ReadKey(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return key, err
}

func parseSubject(arg string) (who erase.Subject, err error) {
	if arg, err = url.QueryUnescape(arg); err != nil {
		return who, errors.New("parse person: not URL-escaped")
	}
	return erase.Parse(arg)
}

// escapeSubject encodes a subject as a command argument.
func escapeSubject(who erase.Subject) string { return url.QueryEscape(who.String()) }

// Forget removes a person from the filter's state. It also makes the filter write all
// records that may mention the person to disk.
func (c *Client) Forget(who erase.Subject, bans bool) (a Forgotten, err error) {
	how := KeepBans
	if bans {
		how = AllBans
	}
	err = c.ask(&a, "forget", escapeSubject(who), how)
	return a, err
}

// Erase removes a person from a segment and returns the number of records changed.
func (c *Client) Erase(segment string, who erase.Subject) (changed int, err error) {
	if strings.ContainsAny(segment, " \r\n\t") {
		return 0, fmt.Errorf("%q is not a segment", segment)
	}
	var a erased
	err = c.ask(&a, "erase", segment, escapeSubject(who))
	return a.Changed, err
}
