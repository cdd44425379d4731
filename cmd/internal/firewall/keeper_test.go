package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/rules"
	"scanwatch/store/export"
)

func prefixes(words ...string) (list []netip.Prefix) {
	for _, w := range words {
		p, ok := parsePrefix(w)
		if !ok {
			panic(w)
		}
		list = append(list, p)
	}
	return list
}

// A fake is a target in memory.
type fake struct {
	content map[netip.Prefix]time.Duration // end times
	now     time.Duration
	fail    error
	changes int // calls to change
	lists   int // calls to list
	reset   bool
}

func (f *fake) target(edit func(*target)) *target {
	t := &target{ends: true, disjoint: true, pause: time.Millisecond, retry: 8 * time.Second,
		list: func(context.Context) (map[netip.Prefix]time.Duration, error) {
			f.lists++
			left := map[netip.Prefix]time.Duration{}
			for p, end := range f.content {
				if left[p] = end - f.now; end == forever {
					left[p] = forever
				}
			}
			return left, f.fail
		},
		change: func(_ context.Context, remove []netip.Prefix, add []entry) error {
			f.changes++
			if f.fail != nil {
				return f.fail
			}
			for _, p := range remove {
				delete(f.content, p)
			}
			for _, e := range add {
				for p := range f.content {
					if p != e.prefix && !p.IsSingleIP() && !e.prefix.IsSingleIP() && p.Overlaps(e.prefix) {
						return fmt.Errorf("%s overlaps %s", e.prefix, p)
					}
				}
				f.content[e.prefix] = f.now + e.left
			}
			return nil
		},
		intact: func(_ context.Context, least func() int) (bool, error) {
			was := f.reset
			f.reset = false
			return !was && len(f.content) >= least(), nil
		},
	}
	if edit != nil {
		edit(t)
	}
	return t
}

// has checks the target's entries. Each is given with the seconds left, as in "45.1.1.1 60".
func (f *fake) has(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for p, end := range f.content {
		got = append(got, fmt.Sprintf("%s %d", address(p), (end-f.now)/time.Second))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("content %q, want %q", got, want)
	}
}

// bans returns entries for words such as "45.1.1.1 60" and "45.1.1.1 60 spared".
func bans(words ...string) (list []control.BanEntry) {
	for _, w := range words {
		var e control.BanEntry
		fields := strings.Fields(w)
		e.Prefix, _ = parsePrefix(fields[0])
		fmt.Sscan(fields[1], &e.Seconds)
		e.Spared = len(fields) > 2
		list = append(list, e)
	}
	return list
}

var (
	full   = control.BanList{Full: true, Enforced: true}
	change = control.BanList{Enforced: true}
)

func keeper(f *fake, most int, edit func(*target)) *Keeper {
	f.content = map[netip.Prefix]time.Duration{}
	return newKeeper(&rules.Companion{Role: rules.RoleSync, Target: "nftables", Argument: "x", Max: most}, f.target(edit), slog.New(slog.DiscardHandler),
		func() time.Duration { return f.now })
}

// TestKeeper checks that the target follows the bans: additions, changed end times, removals,
// exempt hosts, expiry, nested networks, entries that other programs add, and observe mode.
func TestKeeper(t *testing.T) {
	var f fake
	k := keeper(&f, 0, nil)
	ctx := context.Background()
	step := func(list control.BanList, words ...string) {
		t.Helper()
		k.take(list, bans(words...))
		if err := k.step(ctx); err != nil {
			t.Fatal(err)
		}
	}
	f.content[prefixes("45.9.9.9")[0]] = forever
	if err := k.step(ctx); err != nil || f.lists > 0 || len(f.content) != 1 {
		t.Fatalf("changes before the first bans: %v, %v", f.content, err)
	}
	step(full, "45.1.1.1 60", "45.1.1.2 600", "45.1.1.3 600 spared", "45.2.0.0/16 300", "45.2.1.0/24 600", "45.2.1.1 600", "2a0e::/64 60")
	f.has(t, "45.1.1.1 60", "45.1.1.2 600", "45.2.0.0/16 300", "45.2.1.1 600", "2a0e::/64 60")
	before := f.changes
	f.now += 10 * time.Second
	step(change, "45.1.1.2 591")
	if f.changes != before {
		t.Error("a second is a change")
	}
	step(change, "45.1.1.2 900", "45.1.1.1 0", "45.3.3.3 60")
	f.has(t, "45.1.1.2 900", "45.3.3.3 60", "45.2.0.0/16 290", "45.2.1.1 590", "2a0e::/64 50")
	f.now += 295 * time.Second
	step(change)
	f.has(t, "45.1.1.2 605", "45.2.1.0/24 295", "45.2.1.1 295")
	step(change, "45.0.0.0/8 60")
	f.has(t, "45.1.1.2 605", "45.0.0.0/8 60", "45.2.1.1 295")
	step(change, "45.0.0.0/8 0", "45.1.1.2 600 spared")
	f.has(t, "45.2.1.0/24 295", "45.2.1.1 295")
	f.content = map[netip.Prefix]time.Duration{prefixes("45.8.8.8")[0]: forever}
	f.reset = true
	f.now += checkEvery
	step(change)
	f.has(t, "45.2.1.0/24 293", "45.2.1.1 293")
	f.content[prefixes("45.8.8.8")[0]] = forever
	f.content[prefixes("45.2.1.1")[0]] += time.Hour
	f.now += compareEvery
	step(change)
	f.has(t, "45.2.1.0/24 233", "45.2.1.1 233")
	step(full, "45.5.5.5 60")
	f.has(t, "45.5.5.5 60")
	step(control.BanList{}, "45.5.5.5 60")
	f.has(t)
	step(full, "45.5.5.5 60")
	f.has(t, "45.5.5.5 60")
}

// TestKeeperLimit checks that the target receives the bans that end last if there are too many
// bans.
func TestKeeperLimit(t *testing.T) {
	var f fake
	k := keeper(&f, 3, nil)
	var log bytes.Buffer
	k.log = slog.New(slog.NewTextHandler(&log, nil))
	step := func(list control.BanList, words ...string) {
		t.Helper()
		k.take(list, bans(words...))
		if err := k.step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	step(full, "45.1.1.1 100", "45.1.1.2 200", "45.1.1.3 300", "45.1.1.4 400", "45.1.1.5 100")
	f.has(t, "45.1.1.2 200", "45.1.1.3 300", "45.1.1.4 400")
	if err := k.excess(); err == nil || !strings.HasPrefix(err.Error(), "3 of 5 bans are in effect") {
		t.Errorf("the status has %v", err)
	}
	step(change, "45.1.1.6 250")
	f.has(t, "45.1.1.3 300", "45.1.1.4 400", "45.1.1.6 250")
	step(change, "45.1.1.3 0", "45.1.1.4 0", "45.1.1.6 0")
	f.has(t, "45.1.1.1 100", "45.1.1.2 200", "45.1.1.5 100")
	if err := k.excess(); err != nil {
		t.Errorf("without excess: %v", err)
	}
	if n := strings.Count(log.String(), "too many bans"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, log.String())
	}
}

// TestKeeperLimitIdle checks that bans above the limit cause no work while no ban changes.
func TestKeeperLimitIdle(t *testing.T) {
	var f fake
	k := keeper(&f, 2, nil)
	k.take(full, bans("45.1.1.1 100", "45.1.1.2 200", "45.1.1.3 300"))
	step := func() {
		t.Helper()
		if err := k.step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	step()
	f.now = 5 * time.Second
	k.limit()
	if k.all {
		t.Error("all bans are compared although none has changed")
	}
	step()
	f.has(t, "45.1.1.2 195", "45.1.1.3 295")
	f.now = 201 * time.Second // the first two bans have ended
	step()
	k.take(change, bans("45.1.1.4 50"))
	step()
	f.has(t, "45.1.1.3 99", "45.1.1.4 50")
}

// TestKeeperFailure checks that after a failure the keeper rereads the target and tries
// again, waiting longer each time.
func TestKeeperFailure(t *testing.T) {
	var f fake
	k := keeper(&f, 0, nil)
	ctx := context.Background()
	k.take(full, bans("45.1.1.1 600"))
	f.fail = errors.New("no such table")
	for range 100 {
		if err := k.step(ctx); err == nil {
			t.Fatal("no error")
		}
		f.now += time.Second
	}
	if f.lists < 12 || f.lists > 16 {
		t.Errorf("%d attempts in 100 s", f.lists)
	}
	f.fail = nil
	k.take(change, bans("45.1.1.2 600"))
	f.now += 8 * time.Second
	if err := k.step(ctx); err != nil {
		t.Fatal(err)
	}
	f.has(t, "45.1.1.1 492", "45.1.1.2 592")
	if k.take(change, bans("45.1.1.3 600")); k.step(ctx) != nil || f.changes != 2 {
		t.Errorf("%d changes", f.changes)
	}
}

// TestKeeperLongest checks the renewal of entries whose bans last longer than the maximum timeout.
// The entries must be renewed after half of the maximum.
func TestKeeperLongest(t *testing.T) {
	var f fake
	k := keeper(&f, 0, func(t *target) { t.longest = 1000 * time.Second })
	k.take(full, bans("45.1.1.1 5000"))
	var left []time.Duration
	for range 6 {
		if err := k.step(context.Background()); err != nil {
			t.Fatal(err)
		}
		for _, end := range f.content {
			left = append(left, (end-f.now)/time.Second)
		}
		f.now += 200 * time.Second
	}
	if want := []time.Duration{1000, 800, 600, 1000, 800, 600}; !slices.Equal(left, want) {
		t.Errorf("%d, want %d", left, want)
	}
}

// TestPreview checks that a preview lists the changes without making them.
func TestPreview(t *testing.T) {
	var f fake
	k := keeper(&f, 0, nil)
	for _, w := range []string{"45.1.1.1", "45.1.1.2", "45.1.1.3"} {
		f.content[prefixes(w)[0]] = time.Minute
	}
	var out strings.Builder
	if err := k.Preview(context.Background(), &out, full, bans("45.1.1.1 60", "45.1.1.2 600", "45.1.1.4 90061", "45.1.1.5 60 spared")); err != nil {
		t.Fatal(err)
	}
	want := "remove 45.1.1.3\nchange 45.1.1.2 for 10m\nadd 45.1.1.4 for 1d1h\n3 entries in the target, 1 to remove, 2 to add or change\n"
	if out.String() != want || f.changes > 0 {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// TestRun checks the restrictions on programs: they run without a shell, are searched for
// only in absolute directories, and their output is quoted in errors.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "tool")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$#:$1\"; printf 'bad\\033[31m\\nnews' >&2; exit ${2:-0}\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	out, err := run(context.Background(), nil, "tool", "$(id); x")
	if err != nil || string(out) != "1:$(id); x\n" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = run(context.Background(), nil, "tool", "x", "3")
	if err == nil || strings.Contains(err.Error(), "\x1b") || !strings.HasPrefix(err.Error(), "run tool x 3: exit status 3: \"bad") {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"./tool", "missing"} {
		t.Chdir(dir)
		t.Setenv("PATH", ".:/usr/bin")
		if _, err := run(context.Background(), nil, name); err == nil {
			t.Errorf("%s was found", name)
		}
	}
}

// fakePFCTL imitates pfctl(8), keeping its table in a file.
const fakePFCTL = `#!/bin/sh
cd DIR
echo "$@" >>calls
case "$*" in
"-t scanwatch -T show") test -f table || { echo "pfctl: Table does not exist." >&2; exit 255; }; sed 's/^/   /' table ;;
"-t scanwatch -T add -f -") cat >>table; echo "1/1 addresses added." >&2 ;;
"-t scanwatch -T delete -f -") cat >gone; grep -vxFf gone table >new; mv new table ;;
*) echo "usage" >&2; exit 1 ;;
esac
`

// TestPF checks the pfctl commands. The keeper must remove expired entries, because pf
// tables have no timeouts.
func TestPF(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pfctl"), []byte(strings.ReplaceAll(fakePFCTL, "DIR", dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	c := &rules.Companion{Role: rules.RoleSync, Target: "pf", Argument: "scanwatch"}
	target, err := openPF(c)
	if err != nil {
		t.Fatal(err)
	}
	var now time.Duration
	k := newKeeper(c, target, slog.New(slog.DiscardHandler), func() time.Duration { return now })
	step := func(list control.BanList, words ...string) error {
		k.take(list, bans(words...))
		return k.step(context.Background())
	}
	if err := step(full, "45.1.1.1 60"); err == nil || err.Error() != "table scanwatch does not exist; add to pf.conf: table <scanwatch> persist" {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "table"), []byte("45.9.9.9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	has := func(want ...string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, "table"))
		if got := strings.Fields(string(text)); err != nil || !slices.Equal(got, want) {
			t.Errorf("table %q, %v, want %q", got, err, want)
		}
	}
	now += 10 * time.Second
	if err := step(full, "45.1.1.1 60", "45.1.0.0/16 600", "2a0e:1::/64 600"); err != nil {
		t.Fatal(err)
	}
	has("45.1.0.0/16", "45.1.1.1", "2a0e:1::/64")
	now += 61 * time.Second
	if err := step(change, "2a0e:1::/64 900"); err != nil {
		t.Fatal(err)
	}
	has("45.1.0.0/16", "2a0e:1::/64")
	if err := step(control.BanList{}); err != nil {
		t.Fatal(err)
	}
	has()
}

// TestFile checks that a file lists the bans in its format, that the reload command runs
// only after a change, and that a failed reload is repeated.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	name, loaded := filepath.Join(dir, "bans"), filepath.Join(dir, "loaded")
	c := &rules.Companion{Role: rules.RoleSync, Target: "file", Argument: name, Format: "postfix", Reload: []string{"cp", name, loaded}}
	target, err := openFile(c)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Second
	k := newKeeper(c, target, slog.New(slog.DiscardHandler), func() time.Duration { return now })
	step := func(list control.BanList, words ...string) {
		t.Helper()
		k.take(list, bans(words...))
		if err := k.step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	has := func(words ...string) {
		t.Helper()
		text, err := os.ReadFile(loaded)
		var got []string
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "#") {
				got = append(got, strings.Fields(line)[0])
			}
		}
		if err != nil && len(words) > 0 || !slices.Equal(got, words) {
			t.Errorf("loaded %q, %v, want %q", got, err, words)
		}
	}
	step(full)
	has()
	if _, err := os.Stat(loaded); err != nil {
		t.Error("an empty file was not loaded at the start")
	}
	step(change, "45.1.1.1 600", "2a0e::/64 600")
	has("45.1.1.1/32", "2a0e::/64")
	if err := os.Remove(loaded); err != nil {
		t.Fatal(err)
	}
	step(change, "45.1.1.1 601")
	has()
	step(change, "45.1.1.1 0")
	has("2a0e::/64")
	if err := os.WriteFile(name, []byte("overwritten\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	now += checkEvery
	step(change)
	has("2a0e::/64")
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	var out strings.Builder
	if err := k.Preview(context.Background(), &out, full, bans("45.7.7.7 600")); err != nil || !strings.Contains(out.String(), "-2a0e::/64") || !strings.Contains(out.String(), "+45.7.7.7/32") {
		t.Errorf("%v: %s", err, out.String())
	}
	c.Reload[0] = "false"
	k.target.retry = time.Second
	k.take(change, bans("45.1.1.9 600"))
	if err := k.step(context.Background()); err == nil || !strings.HasPrefix(err.Error(), "run false ") {
		t.Errorf("%v", err)
	}
	c.Reload[0] = "cp"
	now += time.Second
	step(change)
	has("45.1.1.9/32", "45.7.7.7/32")
}

// TestCheck checks that invalid target arguments are rejected.
func TestCheck(t *testing.T) {
	want := map[string]string{
		"nftables inet scanwatch": "must be a family, a table and the prefix", "nftables x filter scanwatch": "must be a family",
		"ipset -x": "must be the prefix", "ipset a b": "must be the prefix", "pf <x>": "must be a table", "pf ": "must be a table",
		"file bans.txt plain": "must be an absolute path", "file /x/bans fail2ban": "is not a format of a file", "file /x/bans none": "one of plain, json,",
	}
	for _, c := range slices.Sorted(maps.Keys(want)) {
		word, argument, _ := strings.Cut(c, " ")
		companion := &rules.Companion{Target: word, Argument: argument}
		if word == "file" {
			companion.Argument, companion.Format, _ = strings.Cut(argument, " ")
		}
		if err := Check(companion); err == nil || !strings.Contains(err.Error(), want[c]) && !strings.Contains(err.Error(), "no nftables") {
			t.Errorf("%s: %v, want %s", c, err, want[c])
		}
	}
}

// TestPreviewFIFO checks that a preview fails if the file is a FIFO, instead of waiting for a
// writer.
func TestPreviewFIFO(t *testing.T) {
	name := filepath.Join(t.TempDir(), "bans")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	f := &file{name: name, format: export.FormatByName("plain")}
	if _, _, err := f.preview(nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
}
