package sharing

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/valkey-io/valkey-go"

	"scanwatch/filter/share"
)

// All users of the server can add names to the set of hosts. A name counts as a host only if the
// server has a message from it that is authenticated with the fleet's key.
const (
	// maxHosts is the maximum number of hosts.
	maxHosts = 1000
	// These are the maximum number of names checked in one pass, and their maximum total size in
	// bytes. Later passes check the other names.
	maxNames     = 10_000
	maxNamesSize = 1 << 20
	// maxStrange is the maximum number of names whose rows are read although they have no valid
	// message.
	maxStrange = 100

	// The number of names in a request increases from firstNames to lastNames while the answers are
	// short.
	firstNames      = 10
	lastNames       = 1000
	shortNames      = 32 << 10 // bytes
	namesPerRequest = 200
	rowsPerSample   = 10
)

var errNames = errors.New("the server's set {scanwatch}:hosts has too many names, or names that are too long; delete the set while no new host is starting, and the running hosts add their names again")

// names returns the next names in the set of hosts. If it returns errNames, the list is
// incomplete.
func (s *server) names(ctx context.Context) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	seen, size := 0, 0
	for count := int64(firstNames); ; {
		e, err := s.client.Do(ctx, s.client.B().Sscan().Key(hostsKey).Cursor(s.cursor).Count(count).Build()).AsScanEntry()
		if errors.Is(err, errReply) || ctx.Err() != nil {
			return names, errNames
		}
		if err != nil {
			return nil, err
		}
		before := size
		for _, name := range e.Elements {
			seen, size = seen+1, size+len(name)
			if share.ValidName(name) {
				names = append(names, name)
			}
		}
		switch s.cursor = e.Cursor; {
		case s.cursor == 0:
			return names, nil
		case seen >= maxNames || size >= maxNamesSize:
			return names, errNames
		case size-before < shortNames:
			count = min(2*count, lastNames)
		default:
			count = firstNames
		}
	}
}

// found contains the names that discover has checked.
type found struct {
	hosts   []string // names with a valid message, or already known
	strange []string // names with rows, but without a valid row in the sample
	// changed contains the names of hosts whose companion has started or stopped since the previous
	// call.
	changed []string
}

// discover searches the server for hosts. In the result, known hosts come first. They are followed
// by the hosts that have recently announced themselves, which discover records as heard.
func (s *server) discover(ctx context.Context, known []string) (f found, err error) {
	names, listErr := s.names(ctx)
	if listErr != nil && !errors.Is(listErr, errNames) {
		return f, listErr
	}
	all := append(known, names...)
	seen, before := make(map[string]bool, len(all)), make(map[string]bool, len(known))
	for _, name := range known {
		before[name] = true
	}
	all = slices.DeleteFunc(all, func(name string) bool {
		again := seen[name] || name == s.self
		seen[name] = true
		return again
	})
	var silent []string
	for some := range slices.Chunk(all, namesPerRequest) {
		alive, err := s.areAlive(ctx, some)
		if err != nil {
			return f, err
		}
		for i, name := range some {
			run, known := s.runs[name]
			if known && run != alive[i] {
				f.changed = append(f.changed, name)
			}
			if known || alive[i] != 0 && len(s.runs) < maxHosts {
				s.runs[name] = alive[i]
			}
			switch {
			case alive[i] != 0:
				s.heard[name] = time.Now()
				f.hosts = append(f.hosts, name)
			case before[name]:
				f.hosts = append(f.hosts, name)
			default:
				silent = append(silent, name)
			}
		}
	}
	for some := range slices.Chunk(silent, namesPerRequest) {
		if err := s.sample(ctx, some, &f); err != nil {
			return f, err
		}
	}
	return f, listErr
}

// ask sends a command for each name. A reply that is too large ends the connection, and the other
// commands fail as well; they are then sent again separately.
func (s *server) ask(ctx context.Context, names []string, command func(name string) valkey.Completed) []valkey.ValkeyResult {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var all valkey.Commands
	for _, name := range names {
		all = append(all, command(name))
	}
	results := s.client.DoMulti(ctx, all...)
	if slices.ContainsFunc(results, func(r valkey.ValkeyResult) bool { return errors.Is(r.Error(), errReply) }) {
		for i, name := range names {
			results[i] = s.client.Do(ctx, command(name))
		}
	}
	return results
}

// areAlive returns the runs of the named hosts, or 0 for a host that has not announced itself within
// keepAlive.
func (s *server) areAlive(ctx context.Context, names []string) ([]uint64, error) {
	alive := make([]uint64, len(names))
	for i, r := range s.ask(ctx, names, func(name string) valkey.Completed {
		return s.client.B().Getrange().Key(aliveKey(name)).Start(0).End(maxShort).Build()
	}) {
		text, err := r.ToString()
		if err != nil && !unusable(err) {
			return nil, err
		}
		if m, wrong := decode(s.key, names[i], []byte(text)); err == nil && wrong == nil {
			alive[i] = m.run
		}
	}
	return alive, nil
}

// sample checks a few rows of each name.
func (s *server) sample(ctx context.Context, names []string, f *found) error {
	for i, r := range s.ask(ctx, names, func(name string) valkey.Completed {
		return s.client.B().Hscan().Key(rowsKey(name)).Cursor(0).Count(rowsPerSample).Build()
	}) {
		e, err := r.AsScanEntry()
		switch {
		case unusable(err):
			f.strange = append(f.strange, names[i])
		case err != nil:
			return err
		case s.valid(names[i], e.Elements):
			f.hosts = append(f.hosts, names[i])
		case len(e.Elements) > 0:
			f.strange = append(f.strange, names[i])
		}
	}
	return nil
}

// valid reports whether a hash's fields and values include a valid message.
func (s *server) valid(host string, elements []string) bool {
	for i := 1; i < len(elements); i += 2 {
		if _, err := decode(s.key, host, []byte(elements[i])); err == nil {
			return true
		}
	}
	return false
}
