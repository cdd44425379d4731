package dnslookup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/bits"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/filter/dnslist"
	"scanwatch/rules"
)

// The limits of questions to a list.
const (
	defaultRate = 1 // questions in a second on average
	burst       = 60 * time.Second

	// After several errors in a row, the list has a pause, which doubles.
	maxErrors  = 5
	firstPause = 5 * time.Second
	lastPause  = 5 * time.Minute

	// After a test because of many listings, the next one has to wait.
	trustTime = time.Minute

	// Each list is tested at this interval, and more often while a test fails.
	testInterval = 30 * time.Minute
	firstRetest  = time.Minute
)

// The causes of an unknown answer: see dnslist.Causes.
const (
	causeTimeout  = "timeout"
	causeFailure  = "failure"
	causeCode     = "code"
	causeRate     = "rate"
	causeDisabled = "disabled"
)

// The test addresses of RFC 5782 section 5: a list has the first one, and not the second.
var (
	testListed = netip.MustParseAddr("127.0.0.2")
	testAbsent = netip.MustParseAddr("127.0.0.1")
)

// A list is a DNS list with its limits. Its methods may be called concurrently.
type list struct {
	*rules.Lookup
	id   string
	zone string // with the key: never in logs, errors or the status
	dns  *resolver
	log  *slog.Logger
	now  func() time.Time

	mu      sync.Mutex
	tokens  float64
	filled  time.Time
	errors  int // in a row
	resumes time.Time
	problem error // of the latest test; errUntested before the first one
	recent  recent
	trusted time.Time // until then, many listings cause no test

	tests chan struct{} // has a value if a test must not wait
}

var (
	errUntested = errors.New("not tested yet")
	errSuspect  = errors.New("tested again, because most answers are listings")
)

func newList(l *rules.Lookup, dns *resolver, log *slog.Logger, now func() time.Time) (*list, error) {
	z := &list{Lookup: l, id: l.ID(), zone: l.Zone, dns: dns, log: log, now: now, problem: errUntested, filled: now(), tests: make(chan struct{}, 1)}
	z.tokens = z.rate() * burst.Seconds()
	if l.Key != "" {
		key, err := readKey(config.ResolvePath(l.Pos.File, l.Key))
		if err != nil {
			return nil, fmt.Errorf("key of lookup %s: %w", l.Name, err)
		}
		z.zone = strings.Replace(l.Zone, rules.KeyMark, key, 1)
	}
	if len(z.zone) > maxZone {
		return nil, fmt.Errorf("zone of lookup %s: longer than %d bytes with its key", l.Name, maxZone)
	}
	return z, nil
}

func (z *list) rate() float64 {
	if z.Rate == 0 {
		return defaultRate
	}
	return float64(z.Rate)
}

// maxZone is the maximum length of a zone in bytes, so that a name has room for an IPv6
// address.
const maxZone = 253 - 64

// maxKey is the maximum length of a label of a name in bytes.
const maxKey = 63

// readKey reads a key. Errors do not contain its text.
func readKey(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		err = checkKey(name, info)
	}
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, 4*maxKey))
	if err != nil {
		return "", err
	}
	key := strings.ToLower(strings.TrimSpace(string(b)))
	if key == "" || len(key) > maxKey || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return "", fmt.Errorf("%s does not contain one key of up to %d letters and digits", name, maxKey)
	}
	return key, nil
}

// checkKey returns an error if the file of a key is not a private file.
func checkKey(name string, info fs.FileInfo) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", name)
	case info.Mode()&0o077 != 0:
		return fmt.Errorf("other users can read %s; run chmod 600", name)
	}
	return nil
}

// CheckKey returns an error if the companion, which runs as the user uid, cannot use the
// key of a list. CheckKey does not read the key. Services that root starts can also use a
// key of root.
func CheckKey(l *rules.Lookup, uid uint32) error {
	if l.Key == "" {
		return nil
	}
	name := config.ResolvePath(l.Pos.File, l.Key)
	info, err := os.Stat(name)
	if err == nil {
		err = checkKey(name, info)
	}
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && s.Uid != uid && s.Uid != 0 {
		return fmt.Errorf("%s belongs to another user; run chown", name)
	}
	return nil
}

// ask returns the answer of the list about an address.
func (z *list) ask(ctx context.Context, a netip.Addr) dnslist.Answer {
	answer := dnslist.Answer{Addr: a, List: z.id}
	if answer.Cause = z.take(); answer.Cause != "" {
		return answer
	}
	r, err := z.dns.ask(ctx, rules.Question(a, z.zone))
	if err == nil {
		answer.Codes, answer.TTL = r.addrs, r.ttl
		if _, known := z.Judge(r.addrs); !known {
			answer.Codes, answer.TTL, answer.Cause = nil, 0, causeCode
		}
	} else if answer.Cause = causeFailure; errors.Is(err, errTimeout) {
		answer.Cause = causeTimeout
	}
	if z.note(&answer) {
		z.retest()
	}
	return answer
}

// take reports the reason for which the list must not be asked now, or "".
func (z *list) take() string {
	z.mu.Lock()
	defer z.mu.Unlock()
	now := z.now()
	if z.problem != nil || now.Before(z.resumes) {
		return causeDisabled
	}
	z.tokens = min(z.tokens+z.rate()*now.Sub(z.filled).Seconds(), z.rate()*burst.Seconds())
	z.filled = now
	if z.tokens < 1 {
		return causeRate
	}
	z.tokens--
	return ""
}

// note counts errors in a row and recent listings. suspect reports whether the list must be
// tested because of a.
func (z *list) note(a *dnslist.Answer) (suspect bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	switch now := z.now(); {
	case a.Cause == causeCode: // an answer, although it has no effect
		z.errors = 0
	case a.Cause == "":
		z.errors = 0
		listed, _ := z.Judge(a.Codes)
		suspect = z.recent.add(listed) && z.problem == nil && !now.Before(z.trusted)
		if suspect {
			z.problem = errSuspect
		}
		if listed && z.problem != nil {
			a.Codes, a.TTL, a.Cause = nil, 0, causeDisabled
		}
	case now.Before(z.resumes): // a question of the time before the pause
	default:
		if z.errors++; z.errors >= maxErrors {
			z.resumes = now.Add(min(firstPause<<min(z.errors-maxErrors, 10), lastPause))
		}
	}
	return suspect
}

// retest starts a test of the list.
func (z *list) retest() {
	select {
	case z.tests <- struct{}{}:
	default:
	}
}

// A recent contains the latest answers of a list: whether each was a listing.
type recent struct {
	answers uint64 // one bit for each; the first one is the latest
	n       int
}

// The zone may have become a wildcard if more listings come in a row, or more of the
// answers in the window are listings.
const (
	maxRow    = 20
	window    = 50
	maxListed = window * 80 / 100
)

// add reports whether the listings are unusually many.
func (r *recent) add(listed bool) bool {
	r.answers <<= 1
	if listed {
		r.answers |= 1
	}
	r.n = min(r.n+1, window)
	row := bits.TrailingZeros64(^r.answers)
	return row > maxRow || r.n == window && bits.OnesCount64(r.answers&(1<<window-1)) > maxListed
}

// state returns the reason for which the list is not in use, or nil.
func (z *list) state() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.problem != nil {
		return fmt.Errorf("%s: %w", z.Name, z.problem)
	}
	if z.now().Before(z.resumes) {
		return fmt.Errorf("%s: paused after %d errors in a row", z.Name, z.errors)
	}
	return nil
}

// run tests the list until ctx ends. drop is called if earlier listings must not count.
func (z *list) run(ctx context.Context, drop func()) {
	retest := firstRetest
	for ctx.Err() == nil {
		wait := testInterval
		ok, wrong := z.test(ctx)
		if ok {
			retest = firstRetest
		} else {
			wait, retest = retest, min(2*retest, testInterval)
		}
		if wrong {
			drop()
		}
		select {
		case <-ctx.Done():
		case <-z.tests:
		case <-time.After(wait):
		}
	}
}

// test tests the list and reports whether it can be used. wrong reports whether its earlier
// listings may be wrong.
func (z *list) test(ctx context.Context) (ok, wrong bool) {
	answered, err := z.check(ctx)
	if ctx.Err() != nil {
		return false, false
	}
	z.mu.Lock()
	before := z.problem
	suspect := errors.Is(before, errSuspect)
	if z.problem = err; err == nil {
		z.errors, z.resumes = 0, time.Time{}
	}
	if suspect {
		z.trusted = z.now().Add(trustTime)
	}
	z.recent = recent{}
	z.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		z.log.Warn("list disabled", "lookup", z.Name, "zone", z.Zone, "because", err)
	case err == nil && before != nil && !suspect:
		z.log.Info("list enabled", "lookup", z.Name, "zone", z.Zone)
	}
	return err == nil, err != nil && (answered || suspect)
}

// check checks the test addresses. The codes of the test address need not be codes that
// the operator has listed. answered reports whether the list has answered all questions
// before the error.
func (z *list) check(ctx context.Context) (answered bool, err error) {
	r, err := z.dns.ask(ctx, rules.Question(testListed, z.zone))
	if err != nil {
		return false, fmt.Errorf("test: %w", err)
	}
	if len(r.addrs) == 0 {
		return true, fmt.Errorf("test: %s is not listed, so the list is empty or has ended", testListed)
	}
	for _, a := range r.addrs {
		if !rules.IsCode(a) {
			return true, fmt.Errorf("test: error code %s for %s", a, testListed)
		}
	}
	r, err = z.dns.ask(ctx, rules.Question(testAbsent, z.zone))
	if err != nil {
		return false, fmt.Errorf("test: %w", err)
	}
	if len(r.addrs) > 0 {
		return true, fmt.Errorf("test: %s is listed as %s, so every host may be", testAbsent, r.addrs[0])
	}
	return true, nil
}
