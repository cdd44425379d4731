package dnslookup

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/owner"
	"scanwatch/filter/dnslist"
	"scanwatch/rules"
)

// Intervals of a list's tests and checks.
const (
	testInterval = 5 * time.Minute
	// A listing counts only if its list was checked within this time before it. After such a
	// listing, the list is checked again when this time has passed.
	confirmed = time.Second
	// A list that appeared to contain every host is distrusted: for at least leastDistrust, its
	// listings are unknown.
	leastDistrust = time.Minute
)

// regions contains the two halves of the IPv4 address space, and the public part of IPv6. No list
// contains most hosts of a region, but lists of dynamic addresses contain many. The test therefore
// asks about regionSample random addresses in a region, and a list fails only if it contains all of
// them.
var regions = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1"), netip.MustParsePrefix("2000::/3")}

// With this value, a list of half of all addresses fails the test by chance once in several years.
// The test of a region ends at the first address that is not listed.
const regionSample = 20

// Causes of an unknown answer; see dnslist.Causes.
const (
	causeTimeout  = "timeout"
	causeFailure  = "failure"
	causeCode     = "code"
	causeRate     = "rate"
	causeDisabled = "disabled"
	causeLost     = "lost"
)

// The test addresses of RFC 5782 section 5: a list must contain testListed, but not testAbsent.
var (
	testListed = netip.MustParseAddr("127.0.0.2")
	testAbsent = netip.MustParseAddr("127.0.0.1")
)

// unusedAddr returns a random loopback address. Lists contain no loopback addresses except a few
// test addresses. Because the address is random, no resolver has its response in the cache.
func unusedAddr() netip.Addr {
	ip := [4]byte{127}
	_, _ = rand.Read(ip[1:]) // never fails
	ip[1] |= 128
	return netip.AddrFrom4(ip)
}

// publicAddr returns a random public address in a region.
func publicAddr(region netip.Prefix) netip.Addr {
	first := region.Addr().AsSlice()
	for {
		ip := slices.Clone(first)
		_, _ = rand.Read(ip) // never fails
		keep := byte(0xff) << (8 - region.Bits())
		ip[0] = first[0]&keep | ip[0]&^keep
		if a, _ := netip.AddrFromSlice(ip); dnslist.Public(a) {
			return a
		}
	}
}

// unusedLabel returns a random label that cannot be part of an address. A name with this label has
// an address only if the zone contains a wildcard. Queries for unused addresses do not find every
// wildcard, because a wildcard does not apply to names below an existing name such as
// 127.bl.example.org (RFC 4592).
func unusedLabel() string {
	label := make([]byte, 16)
	_, _ = rand.Read(label) // never fails
	for i, b := range label {
		label[i] = 'g' + b%16
	}
	return string(label)
}

// An upstream is a resolver's state for one list.
type upstream struct {
	confirming sync.Mutex   // held while a listing is checked
	checked    [2]time.Time // times of the latest checks, for IPv4 and IPv6
	unchecked  [2]bool      // a listing has counted since the latest check

	// Protected by the list's mu.
	problem  error         // reason why the resolver is not used, or nil
	falsely  time.Duration // longest TTL of false listings since the latest successful test
	distrust time.Time     // until then, the resolver may cache false listings
}

// A list is a DNS list with its limits. Its methods may be called concurrently.
type list struct {
	*rules.Lookup
	id   string
	zone string // includes the key, so logs, errors and the status must not contain it
	dns  *resolver
	log  *slog.Logger
	now  func() time.Time

	jobs   chan netip.Addr // pending questions
	tests  chan struct{}   // has a value if a test is due immediately
	checks chan struct{}   // has a value if listings have counted since the latest check

	upstreams []upstream // one per server of dns

	mu      sync.Mutex
	limits  limiter
	errors  int // consecutive
	resumes time.Time
	problem error // problem in the latest test; errUntested before the first test
	// broken is set if the list can never be asked; problem gives the reason.
	broken   bool
	answered bool // a resolver has answered since the latest call of fresh
}

var (
	errUntested = errors.New("not tested yet")
	errSuspect  = errors.New("tested again, because it lists an address that no list contains")
	errNoAnswer = errors.New("tested again, because a check before a listing had no answer")
)

// newList returns a list. After an error, the list remains disabled.
func newList(l *rules.Lookup, dns *resolver, log *slog.Logger, now func() time.Time) (*list, error) {
	z := &list{Lookup: l, id: l.ID(), zone: l.Zone, dns: dns, log: log, now: now, problem: errUntested, limits: newLimiter(cmp.Or(l.Rate, defaultRate), now()),
		jobs: make(chan netip.Addr, maxJobs), tests: make(chan struct{}, 1), checks: make(chan struct{}, 1), upstreams: make([]upstream, len(dns.servers))}
	if l.Key != "" {
		key, err := readKey(config.ResolvePath(l.Pos.File, l.Key))
		if err != nil {
			return z, z.disable(fmt.Errorf("key: %w", err))
		}
		z.zone = strings.Replace(l.Zone, rules.KeyMark, key, 1)
	}
	if len(z.zone) > maxZone {
		return z, z.disable(fmt.Errorf("zone: longer than %d bytes with its key", maxZone))
	}
	return z, nil
}

// disable disables the list until the process ends.
func (z *list) disable(err error) error {
	z.problem, z.broken = fmt.Errorf("%w; then restart the service", err), true
	return z.problem
}

// maxZone is the maximum length of a zone in bytes. A query's name is at most 253 bytes long, and
// an IPv6 address takes up to 64 of them.
const maxZone = 253 - 64

// maxKey is the maximum length of a DNS label in bytes.
const maxKey = 63

// readKey reads a key. Errors do not contain the key. If root starts the service, a user who can
// change the key's directory must not be able to select a file that only root can read.
func readKey(name string) (key string, err error) {
	err = owner.DoFile(name, func() (err error) { key, err = readKeyFile(name); return err })
	return key, err
}

func readKeyFile(name string) (string, error) {
	f, err := owner.Open(name)
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

// checkKey returns an error unless the key's file is private.
func checkKey(name string, info fs.FileInfo) error {
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", name)
	case info.Mode()&0o077 != 0:
		return fmt.Errorf("other users can read %s; run chmod 600", name)
	}
	return nil
}

// CheckKey returns an error if a list's key is unusable for the companion, which runs as the user
// uid. It does not read the key. Services started by root can also use keys that belong to root.
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

// ask returns the list's answer for an address.
func (z *list) ask(ctx context.Context, a netip.Addr) dnslist.Answer {
	answer := dnslist.Answer{Addr: a, List: z.id}
	client := a.Unmap()
	if answer.Cause = z.take(client); answer.Cause != "" {
		return answer
	}
	r, via, err := z.query(ctx, z.usable(), rules.Question(client, z.zone), 1)
	listed, known := z.Judge(r.addrs)
	switch {
	case err != nil:
		answer.Cause = causeOf(err)
	case !known:
		answer.Cause = causeCode
	case listed:
		answer.Cause = z.confirm(ctx, via, client)
	}
	if answer.Cause == "" {
		answer.Codes, answer.TTL = r.addrs, r.ttl
	}
	z.note(answer.Cause)
	return answer
}

// query asks the list about a name through the given resolvers in turn, and returns the resolver
// asked last. paid is the number of queries that were counted beforehand.
func (z *list) query(ctx context.Context, use []int, name string, paid int) (r response, via int, err error) {
	r, via, queries, err := z.dns.ask(ctx, use, name)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.limits.spend(queries-paid, z.now())
	z.answered = z.answered || err == nil
	return r, via, err
}

// usable returns the resolvers that passed their latest test.
func (z *list) usable() (use []int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for i := range z.upstreams {
		if z.upstreams[i].problem == nil {
			use = append(use, i)
		}
	}
	return use
}

func causeOf(err error) string {
	switch {
	case errors.Is(err, errTimeout):
		return causeTimeout
	case errors.Is(err, errNoServer):
		return causeDisabled
	}
	return causeFailure
}

// take counts a query about a client, or returns the reason why the list must not be asked now.
func (z *list) take(a netip.Addr) string {
	z.mu.Lock()
	defer z.mu.Unlock()
	now := z.now()
	switch {
	case z.problem != nil || now.Before(z.resumes):
		return causeDisabled
	case !z.limits.take(a, now):
		return causeRate
	}
	return ""
}

// confirm checks that the list does not contain every host. A listing counts only after this check,
// for which confirm asks the resolver that returned the listing. One check is enough for all
// listings within a second. After these listings, the list is checked once more. The result is the
// reason why the listing does not count, or "".
func (z *list) confirm(ctx context.Context, via int, client netip.Addr) (cause string) {
	u := &z.upstreams[via]
	u.confirming.Lock()
	defer u.confirming.Unlock()
	family := 0
	if client.Is6() {
		family = 1
	}
	if z.state() != nil || !z.trusts(via) {
		return causeDisabled
	}
	since := z.now().Sub(u.checked[family])
	if since >= confirmed {
		return z.probe(ctx, via, family)
	}
	if !u.unchecked[family] {
		u.unchecked[family] = true
		time.AfterFunc(min(confirmed-since, confirmed), func() { signal(z.checks) })
	}
	return ""
}

// probe checks that the list does not contain every host of an address family. The caller holds
// confirming.
func (z *list) probe(ctx context.Context, via, family int) (cause string) {
	u, start := &z.upstreams[via], z.now()
	u.unchecked[family] = false
	unused := unusedAddr()
	if family == 1 {
		unused = netip.AddrFrom16(unused.As16())
	}
	for _, name := range []string{rules.Question(unused, z.zone), unusedLabel() + "." + z.zone} {
		r, _, err := z.query(ctx, []int{via}, name, 0)
		switch {
		case err != nil: // other pending listings must not repeat the check
			z.suspect(via, errNoAnswer, 0)
			return causeOf(err)
		case len(r.addrs) > 0:
			z.suspect(via, errSuspect, r.falseTTL())
			return causeDisabled
		}
	}
	u.checked[family] = start
	if z.state() != nil {
		return causeDisabled
	}
	return ""
}

// recheck checks the list again if listings have counted since the latest check. Without recheck, a
// server with few clients might not check the list for a long time.
func (z *list) recheck(ctx context.Context) {
	for via := range z.upstreams {
		for family := range 2 {
			z.recheckFamily(ctx, via, family)
		}
	}
}

func (z *list) recheckFamily(ctx context.Context, via, family int) {
	u := &z.upstreams[via]
	u.confirming.Lock()
	defer u.confirming.Unlock()
	if u.unchecked[family] {
		z.probe(ctx, via, family)
	}
}

// falseTTL returns how long a resolver may cache r, a response that falsely lists a host.
func (r *response) falseTTL() time.Duration {
	if slices.ContainsFunc(r.addrs, rules.IsCode) {
		return max(r.ttl, leastDistrust)
	}
	return 0 // no listing
}

// suspect starts a test, and disables a resolver until a test succeeds. falsely is the result of
// falseTTL.
func (z *list) suspect(via int, problem error, falsely time.Duration) {
	z.mu.Lock()
	defer z.mu.Unlock()
	u := &z.upstreams[via]
	u.problem, u.falsely = problem, max(u.falsely, falsely)
	if z.problem == nil {
		z.problem = z.unusable()
	}
	z.retest()
}

// trusts reports whether a resolver's listings count.
func (z *list) trusts(via int) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	u := &z.upstreams[via]
	return u.problem == nil && !z.now().Before(u.distrust)
}

// suspected reports whether any resolver has returned a false listing; see falseTTL.
func (z *list) suspected() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	for i := range z.upstreams {
		if errors.Is(z.upstreams[i].problem, errSuspect) {
			return true
		}
	}
	return false
}

func (z *list) retest() { signal(z.tests) }

// signal sends a value to c unless c already has one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// note counts consecutive errors.
func (z *list) note(cause string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	now := z.now()
	switch {
	case cause == "" || cause == causeCode: // an answer, even if it has no effect
		z.errors = 0
	case cause == causeDisabled || now.Before(z.resumes): // the question was asked before the pause
	default:
		if z.errors++; z.errors >= maxErrors {
			z.resumes = now.Add(pause(z.errors - maxErrors + 1))
			z.retest() // the log and the status then give the reason even if no other client connects
		}
	}
}

// fresh reports whether a resolver has answered since the previous call.
func (z *list) fresh() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	answered := z.answered
	z.answered = false
	return answered
}

// state returns the reason why the list is not in use, or nil.
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

// If no resolver can be used, unusable returns the first resolver's problem. The caller holds mu.
func (z *list) unusable() (first error) {
	for i := range z.upstreams {
		if z.upstreams[i].problem == nil {
			return nil
		}
		first = cmp.Or(first, z.upstreams[i].problem)
	}
	return first
}

// unused returns the problems of resolvers that are not in use although other resolvers are. It
// also returns the problems of resolvers whose listings do not count. The result is nil without
// such problems.
func (z *list) unused() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	var all []string
	for i := range z.upstreams {
		switch u := &z.upstreams[i]; {
		case z.problem != nil:
		case u.problem != nil:
			all = append(all, fmt.Sprintf("%s: resolver %s not used: %v", z.Name, z.dns.servers[i], u.problem))
		case z.now().Before(u.distrust):
			all = append(all, fmt.Sprintf("%s: listings unknown until %s, because the list contained every host, and resolver %s may have such answers in its cache",
				z.Name, u.distrust.UTC().Format("15:04:05 UTC"), z.dns.servers[i]))
		}
	}
	if all == nil {
		return nil
	}
	return errors.New(strings.Join(all, "; "))
}

// run tests the list until ctx is done. drop is called if earlier listings must no longer count.
func (z *list) run(ctx context.Context, drop func()) {
	for failures := 0; ctx.Err() == nil; {
		if z.suspected() {
			drop() // the test may take long
		}
		ok, wrong := z.test(ctx)
		wait := testInterval
		if failures++; ok {
			failures = 0
		} else {
			wait = pause(failures)
		}
		if wrong {
			drop()
		}
		z.rest(ctx, wait)
	}
}

// rest returns when the next test is due.
func (z *list) rest(ctx context.Context, wait time.Duration) {
	due := time.NewTimer(wait)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-z.tests:
			return
		case <-due.C:
			return
		case <-z.checks:
			z.recheck(ctx)
		}
	}
}

// test tests the list through each resolver. ok reports whether all resolvers can be used, and
// wrong whether earlier listings may be wrong.
func (z *list) test(ctx context.Context) (ok, wrong bool) {
	ok = true
	for i := range z.upstreams {
		answered, falsely, err := z.check(ctx, i)
		if ctx.Err() != nil {
			return false, false
		}
		before := z.conclude(i, falsely, err)
		ok = ok && err == nil
		// Without an answer, earlier listings remain valid, because other resolvers may have
		// returned them.
		wrong = wrong || changed(before, err) && (answered || errors.Is(before, errSuspect))
		if len(z.upstreams) > 1 {
			switch disabled, enabled := news(before, err); {
			case disabled:
				z.log.Warn("resolver disabled", "lookup", z.Name, "zone", z.Zone, "resolver", z.dns.servers[i], "because", err)
			case enabled:
				z.log.Info("resolver enabled", "lookup", z.Name, "zone", z.Zone, "resolver", z.dns.servers[i])
			}
		}
	}
	z.mu.Lock()
	before := z.problem
	z.problem = z.unusable()
	err := z.problem
	if err == nil && before != nil { // a success does not end a pause: clients' questions may still fail
		z.errors, z.resumes = 0, time.Time{}
	}
	z.mu.Unlock()
	switch disabled, enabled := news(before, err); {
	case disabled:
		z.log.Warn("list disabled", "lookup", z.Name, "zone", z.Zone, "because", err)
	case enabled:
		z.log.Info("list enabled", "lookup", z.Name, "zone", z.Zone)
	}
	return ok, wrong
}

// conclude stores the result of a resolver's test, and returns its previous problem. If the list
// contained every host at any time since the previous successful test, listings in the resolver's
// cache can be wrong until they expire.
func (z *list) conclude(via int, falsely time.Duration, err error) (before error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	u := &z.upstreams[via]
	before, u.problem, u.falsely = u.problem, err, max(u.falsely, falsely)
	if err == nil && u.falsely > 0 {
		u.distrust, u.falsely = z.now().Add(u.falsely), 0
		z.log.Warn("listings unknown", "lookup", z.Name, "zone", z.Zone, "resolver", z.dns.servers[via],
			"until", u.distrust.UTC().Format(time.RFC3339))
	}
	return before
}

// changed reports whether err is a new problem.
func changed(before, err error) bool {
	return err != nil && (before == nil || before.Error() != err.Error())
}

// news reports whether a test's result must be logged, because the list or the resolver was
// disabled or enabled. If a test was started by a suspicious listing and succeeds, its result is
// not logged.
func news(before, err error) (disabled, enabled bool) {
	doubt := func(err error) bool { return errors.Is(err, errSuspect) || errors.Is(err, errNoAnswer) }
	return changed(before, err) && !doubt(err), err == nil && before != nil && !doubt(before)
}

// check queries a resolver for the test addresses, unused addresses, an unused label and samples of
// public addresses. A test address may have codes that are not in the configuration. answered
// reports whether the list answered all questions before the error. falsely is the longest result
// of falseTTL.
func (z *list) check(ctx context.Context, via int) (answered bool, falsely time.Duration, err error) {
	unused := unusedAddr()
	for _, t := range []struct {
		name, question string
		listed         bool
	}{
		{testListed.String(), rules.Question(testListed, z.zone), true},
		{testAbsent.String(), rules.Question(testAbsent, z.zone), false},
		{"a random loopback address", rules.Question(unused, z.zone), false},
		{"a random IPv4-mapped loopback address", rules.Question(netip.AddrFrom16(unused.As16()), z.zone), false},
		{"a random name", unusedLabel() + "." + z.zone, false},
	} {
		r, _, failed := z.query(ctx, []int{via}, t.question, 0)
		if !t.listed && len(r.addrs) > 0 { // the next names show how long the resolver caches such answers
			falsely = max(falsely, r.falseTTL())
			err = cmp.Or(err, fmt.Errorf("test: %s is listed as %s, so every host may be", t.name, r.addrs[0]))
		}
		switch {
		case err != nil:
			continue
		case failed != nil:
			return false, falsely, fmt.Errorf("test: %w", failed)
		case t.listed && len(r.addrs) == 0:
			return true, 0, fmt.Errorf("test: %s is not listed, so the list is empty or has ended", t.name)
		}
		for _, code := range r.addrs {
			if !rules.IsCode(code) {
				return true, 0, fmt.Errorf("test: error code %s for %s", code, t.name)
			}
		}
	}
	if err != nil {
		return true, falsely, err
	}
	for _, region := range regions {
		if answered, falsely, err := z.sample(ctx, via, region); err != nil {
			return answered, falsely, err
		}
	}
	return true, 0, nil
}

// sample returns an error if the list contains all of several random addresses in a region.
func (z *list) sample(ctx context.Context, via int, region netip.Prefix) (answered bool, falsely time.Duration, err error) {
	for range regionSample {
		r, _, err := z.query(ctx, []int{via}, rules.Question(publicAddr(region), z.zone), 0)
		if err != nil {
			return false, 0, fmt.Errorf("test: %w", err)
		}
		if listed, _ := z.Judge(r.addrs); !listed {
			return true, 0, nil
		}
		falsely = max(falsely, r.falseTTL())
	}
	return true, falsely, fmt.Errorf("test: %d of %d random addresses of %s are listed, so most hosts may be", regionSample, regionSample, region)
}
