// Package sharing implements the share companion, which exchanges rows of the state with a fleet's
// other hosts through a Valkey server. Package filter/share defines the meaning of the rows.
//
// The filter never waits for the companion, and the companion keeps no data on disk. Rows that were
// not sent remain in the filter's tables, and other hosts' rows remain in Valkey. After an
// interruption, all rows can therefore be exchanged again.
package sharing

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"time"

	"github.com/valkey-io/valkey-go"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/share"
	"scanwatch/rules"
)

const (
	// interval is the interval at which changes are sent.
	interval = time.Second
	// upkeep is the interval at which the server and the list of hosts are checked.
	upkeep = 10 * time.Second
	// expireEvery is the interval at which expired rows are removed.
	expireEvery = 10 * time.Minute

	// filterPause is the time between two attempts to connect to the filter. It does not increase
	// with further failures, because without the companion, the filter does not enforce other
	// hosts' bans.
	filterPause = 2 * time.Second
	// The time between two attempts to connect to the server increases from firstPause to
	// lastPause.
	firstPause = time.Second
	lastPause  = 30 * time.Second
	// claimPause is the time after which a host may set the key of a server that has none, even if
	// the host has never had the same key as the fleet; see mayClaim.
	claimPause = 10 * time.Minute
	// returnTime is the time that all running hosts need to send their rows again after a server
	// has lost them.
	returnTime = lastPause + 2*upkeep

	rowsPerRequest = 5000

	// memoryLimit is the memory use above which garbage is collected more often. A million rows of
	// half a kilobyte and the server's replies fit. The limit of the systemd unit is higher.
	memoryLimit = 768 << 20
)

// A Service is the companion share.
type Service struct {
	name, runDir string
	fleet        *rules.Fleet
	key          fleetkey.Key
	options      valkey.ClientOption
	password     string // password file; empty without a password
	log          *slog.Logger

	run      uint64 // random number of this run
	replica  *share.Replica
	skew     time.Duration // the server's clock minus this host's clock; see measure
	measured bool          // skew is known

	filter *control.Client // nil while the filter cannot be reached
	server *server         // nil while the server cannot be reached
	// unsent contains this host's rows that the server may lack.
	unsent map[string]share.Row
	sent   uint64 // number of the latest message
	// wrong contains the problem of each host with unusable messages.
	wrong  map[string]string
	reads  map[string]*hostRows // state of reading each host's rows
	joined bool                 // the server has had this host's key
	// claimed is the time at which the latest server received the fleet's key. It changes when the
	// server has lost its rows.
	claimed time.Time
	whole   bool // all names in the server's set have been checked at least once
	// returned is a time: even if the server lost all rows just before this companion started, all
	// other hosts have sent their rows again by then.
	returned time.Time
	synced   bool // the filter has received all rows and has sent its own
	// waiting is set if the filter has never had the standing on other hosts.
	waiting bool
	// confirmed is set once the filter knows that it has received all hosts' standing.
	confirmed bool
	// mismatch is the latest time at which the fleet's key differed from this host's key; see
	// mayClaim.
	mismatch time.Time
	refused  error // error of the server for this host's latest rows; nil if it accepted them
	// unannounced is the server's error for this host's latest announcement, or nil.
	unannounced error
	latest      map[string]position // latest message of each host
	origins     []string            // hosts of which the filter had rows at the start
	unlisted    error               // error in the latest search for hosts, or nil
	next        struct{ connect, send, upkeep, expire, log time.Time }
	pause       time.Duration // before the next attempt to connect to the server
	away        error         // latest connection error of the server
	status      string        // latest error in the log
	// differs is set if the filter was started with other settings of the statement fleet.
	differs error
	// rejected is set while the filter answers requests with errors.
	rejected bool
	// announced is set after the first announcement of this run.
	announced bool
	// rival is set while another companion announces this host's name.
	rival bool
}

// A position is a message's number in a run.
type position struct{ run, number uint64 }

// New reads the key and the password, and returns a Service.
func New(c *rules.Companion, f *rules.Fleet, runDir string, log *slog.Logger) (*Service, error) {
	key, err := fleetkey.Read(f.Key)
	if err != nil {
		return nil, fmt.Errorf("fleet key: %w", err)
	}
	o, err := options(&c.Share)
	if err != nil {
		return nil, err
	}
	var run [8]byte
	_, _ = rand.Read(run[:]) // never fails
	return &Service{
		name: c.Name(), runDir: runDir, fleet: f, key: key, options: o, password: c.Share.Password, log: log,
		run: binary.BigEndian.Uint64(run[:]), replica: share.New(f.Name, Limits(f)),
		unsent: make(map[string]share.Row), wrong: make(map[string]string), latest: make(map[string]position),
		reads: make(map[string]*hostRows),
	}, nil
}

// Limits returns the limits on rows from other hosts.
func Limits(f *rules.Fleet) share.Limits {
	l := share.DefaultLimits()
	l.Bans, l.Duration, l.Observe = cmp.Or(f.Bans, l.Bans), cmp.Or(f.Longest, l.Duration), f.Observe
	return l
}

// now returns the server's time, which all hosts use.
func (s *Service) now() time.Time { return time.Now().Add(s.skew) }

func (s *Service) skewSeconds() int64 { return int64(s.skew.Round(time.Second) / time.Second) }

// Run exchanges rows until ctx is done.
func (s *Service) Run(ctx context.Context) {
	debug.SetMemoryLimit(memoryLimit)
	defer s.disconnect()
	for ctx.Err() == nil {
		err := s.exchange(ctx)
		if ctx.Err() != nil {
			return
		}
		s.report(err)
		if err == nil { // read has waited
			s.pause = 0
			continue
		}
		wait := filterPause
		if s.server == nil {
			wait = min(wait, time.Until(s.next.connect))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// report sends an exchange's result to the filter, and logs new errors. A user of the server can
// cause problems of single hosts, so these are logged at most once in each upkeep interval.
func (s *Service) report(err error) {
	problem := trouble(s)
	switch {
	case err != nil:
		if err.Error() != s.status {
			s.status = err.Error()
			s.log.Warn("not shared", "companion", s.name, "err", err)
		}
	case problem != nil:
		if problem.Error() != s.status && time.Now().After(s.next.log) {
			s.status, s.next.log = problem.Error(), time.Now().Add(upkeep)
			s.log.Warn("not everything shared", "companion", s.name, "err", problem)
		}
	case s.status != "":
		s.status = ""
		s.log.Info("shared again", "companion", s.name)
	}
	s.rejected = s.rejected && err != nil
	if s.filter == nil {
		return
	}
	if noteErr := s.note(err); noteErr != nil {
		s.dropFilter()
	}
}

// trouble returns a problem that does not end the exchange, or nil.
func trouble(s *Service) error {
	return cmp.Or(s.refused, s.unannounced, s.differs, s.unlisted, s.problem())
}

func (s *Service) note(err error) error {
	switch {
	case err != nil:
	case trouble(s) != nil:
		err = trouble(s)
	case !s.confirmed && !complete(s):
		err = control.ErrStarting
	}
	return s.filter.Note(s.name, s.replica.Len(), 0, err)
}

// problem returns an error that names one host whose rows are unusable, or nil.
func (s *Service) problem() error {
	for _, h := range s.replica.Hosts() {
		if h.Problem != "" {
			return fmt.Errorf("host %s: %s", h.Name, h.Problem)
		}
	}
	wrong := wrongHosts(s)
	for _, name := range slices.Sorted(maps.Keys(wrong)) {
		return fmt.Errorf("host %s: %s", name, wrong[name])
	}
	if problem := s.replica.Crowded(); problem != "" {
		return errors.New(problem)
	}
	return nil
}

// wrongHosts returns the problem of each host with unusable messages or rows.
func wrongHosts(s *Service) map[string]string {
	all := maps.Clone(s.wrong)
	for host, h := range s.reads {
		if problem := h.unread(s.waiting && !s.confirmed); problem != "" && all[host] == "" {
			all[host] = problem
		}
	}
	return all
}

func (s *Service) disconnect() {
	s.dropFilter()
	s.dropServer()
}

func (s *Service) dropFilter() {
	if s.filter != nil {
		s.filter.Close()
		s.filter, s.synced, s.confirmed = nil, false, false
	}
}

// failFilter disconnects from the filter after an error. If the filter still accepts a status, the
// error becomes the status, because a new connection would fail in the same way.
func (s *Service) failFilter(what string, err error) error {
	err = fmt.Errorf("%s: %w", what, err)
	s.rejected = s.filter != nil && s.note(err) == nil
	s.dropFilter()
	return err
}

func (s *Service) dropServer() {
	if s.server != nil {
		s.server.close()
		s.server = nil
	}
}

// failServer disconnects from the server for a while after an error.
func failServer(s *Service, what string, err error) error {
	s.dropServer()
	s.pause = min(max(2*s.pause, firstPause), lastPause)
	s.next.connect, s.away = time.Now().Add(s.pause), err
	return fmt.Errorf("%s: %w", what, remedy(err))
}

// exchange connects to the filter and the server if necessary, waits for other hosts' rows, and
// sends this host's rows when they are due. An error of the server does not affect the connection
// to the filter, and vice versa.
func (s *Service) exchange(ctx context.Context) error {
	if err := s.connectServer(ctx); err != nil {
		return errors.Join(err, s.connectFilter())
	}
	if ready(s) { // the rows that have been read may have been lost since
		if err := checkKey(ctx, s); err != nil {
			return failServer(s, "server", err)
		}
	}
	if err := s.connectFilter(); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return s.failFilter("rows for the filter", err)
	}
	wait := max(min(time.Until(s.next.send), interval), time.Millisecond)
	if reading(s) {
		wait = time.Millisecond
	}
	all, err := s.server.read(ctx, wait)
	if err != nil {
		return failServer(s, "read from the server", err)
	}
	if err := measure(ctx, s); err != nil { // must come first: the times in the rows are converted with the result
		return failServer(s, "server", err)
	}
	receiveAll(s, all)
	if err := readRows(ctx, s); err != nil {
		return failServer(s, "read from the server", err)
	}
	if err := s.handOver(); err != nil {
		return s.failFilter("rows for the filter", err)
	}
	if time.Now().Before(s.next.send) {
		return nil
	}
	s.next.send = time.Now().Add(interval)
	if err := s.receive(false); err != nil {
		return s.failFilter("rows of the filter", err)
	}
	s.refused = nil
	if err := s.publish(ctx); err != nil {
		if _, answered := valkey.IsValkeyErr(err); !answered {
			return failServer(s, "write to the server", err)
		}
		s.refused = fmt.Errorf("write to the server: %w", remedy(err)) // the server may be full; reading continues
	}
	return s.maintain(ctx)
}

// connectServer connects to the server when an attempt is due.
func (s *Service) connectServer(ctx context.Context) error {
	if s.server != nil {
		return nil
	}
	if time.Now().Before(s.next.connect) {
		return fmt.Errorf("server: %w", remedy(s.away))
	}
	if err := enter(ctx, s); err != nil {
		return failServer(s, "server", err)
	}
	return nil
}

// mayClaim reports whether this host's key may become the key of a server that has no key. A host
// with a wrong key must not set the key of a server that has lost all data. If such a host has
// already set the key and is then removed, the other hosts must not wait for each other forever.
func mayClaim(s *Service) bool { return s.joined || time.Since(s.mismatch) > claimPause }

// enter connects to the server, announces this host, and searches for the other hosts.
func enter(ctx context.Context, s *Service) (err error) {
	if text, err := password(s.password); err == nil { // the password may have changed; if it has become unreadable, the old one is used
		s.options.Password = text
	}
	if s.server, err = connect(ctx, s.options, s.key, s.fleet.Name, s.run, mayClaim(s)); err != nil {
		if errors.Is(err, errKey) {
			if s.mismatch = time.Now(); s.joined {
				err = fmt.Errorf("%w; if no key file has changed, a user of the server has overwritten {scanwatch}:key: delete it", err)
			}
		}
		return err
	}
	if err := measure(ctx, s); err != nil {
		return err
	}
	clear(s.wrong) // every host is checked again
	restart(s)
	if err := s.announce(ctx); err != nil { // announce first, so that a later loss of rows is noticed
		return err
	}
	// Read this host's rows first, so that its earlier marks and stamps are known.
	if err := readOwn(ctx, s); err != nil {
		return err
	}
	if err := discover(ctx, s); err != nil {
		return err
	}
	await(s)
	s.joined = true
	s.next.upkeep = time.Time{}
	return nil
}

// await makes the filter wait until the other hosts have sent their rows again, if the server may just
// have lost them.
func await(s *Service) {
	if !s.confirmed {
		s.returned = time.Now().Add(min(max(returnTime-s.now().Sub(s.server.claimed), 0), returnTime))
	}
}

// checkKey checks that the server still has the fleet's key. If the server has lost all rows, without
// ending the connection, the rows of all hosts are read again.
func checkKey(ctx context.Context, s *Service) error {
	if err := s.server.check(ctx, true); err != nil {
		return err
	}
	if !s.server.claimed.Equal(s.claimed) {
		restart(s)
		await(s)
	}
	return nil
}

// readOwn reads this host's rows from the server, and finds the rows that must be sent to the
// server again. Rows that another host wrote under the same name are disputed.
func readOwn(ctx context.Context, s *Service) error {
	there, at := make(map[string]share.Stamp), new(step)
	for done := false; !done; {
		var err error
		done, err = s.server.rows(ctx, s.fleet.Name, at, func(rows []share.Row) {
			s.apply(&received{host: s.fleet.Name, message: message{rows: rows}})
			for i := range rows {
				there[field(&rows[i])] = rows[i].Stamp
			}
		})
		if unusable(err) { // unusable rows are replaced
			break
		}
		if err != nil {
			return err
		}
	}
	s.keep(slices.DeleteFunc(s.replica.Rows(s.fleet.Name), func(r share.Row) bool { return there[field(&r)] >= r.Stamp }))
	return nil
}

// receiveAll applies other hosts' messages.
func receiveAll(s *Service, all []received) {
	for i := range all {
		m := &all[i]
		s.server.heard[m.host] = time.Now()
		s.apply(m)
		if missed(s, m) {
			want(s, m.host, false)
		}
	}
}

// missed reports whether a host's earlier messages are missing. The server keeps only the latest
// messages.
func missed(s *Service, m *received) bool {
	if m.err != nil {
		return false
	}
	before, known := s.latest[m.host]
	s.latest[m.host] = position{m.run, m.number}
	if known && before.run == m.run {
		return m.number > before.number+1
	}
	return known && m.number > 1
}

// maxDrift is the maximum change in skew that does not count as a clock correction.
const maxDrift = 2 * time.Second

// measure compares the clocks of the server and this host.
//
// Rows contain the server's time. If either clock is corrected, this host's times in the server and
// other hosts' times in the filter were converted with the old difference. All rows are therefore
// exchanged again, so that all hosts compare the same times. Small changes are ignored, because they
// do not matter, and all rows would have to be sent.
func measure(ctx context.Context, s *Service) error {
	skew, err := s.server.skew(ctx)
	if err != nil {
		return err
	}
	if s.measured && (skew-s.skew).Abs() <= maxDrift {
		return nil
	}
	s.skew, s.synced, s.measured = skew, s.synced && !s.measured, true
	return nil
}

// discover searches for hosts. The rows of new hosts will be read. If the companion of a known host has
// stopped or restarted, its rows are read again, because it may have stored rows without announcing them.
func discover(ctx context.Context, s *Service) error {
	known := slices.Concat(slices.Collect(maps.Keys(s.server.last)), s.origins)
	for _, h := range s.replica.Hosts() {
		if h.Rows > 0 {
			known = append(known, h.Name)
		}
	}
	f, err := s.server.discover(ctx, known)
	if s.unlisted = nil; errors.Is(err, errNames) {
		s.unlisted, err = err, nil
	}
	if err != nil {
		return err
	}
	for _, h := range f.hosts {
		if _, ok := s.server.last[h]; !ok && len(s.server.last) < maxHosts {
			want(s, h, false)
		}
	}
	for _, h := range f.changed {
		want(s, h, false)
	}
	for _, h := range f.strange {
		if _, ok := s.server.strange[h]; !ok && len(s.server.strange) < maxStrange {
			s.server.strange[h] = struct{}{}
			want(s, h, true)
		}
	}
	s.whole = s.whole || s.server.cursor == 0 && s.unlisted == nil
	return nil
}

func (s *Service) apply(m *received) {
	err := m.err
	if err == nil && !slices.Contains(s.fleet.Ignore, m.host) {
		err = s.replica.Apply(m.host, m.rows, s.now())
	}
	if err != nil {
		s.wrong[m.host] = err.Error()
		return
	}
	if m.run != 0 {
		delete(s.wrong, m.host)
	}
}

// connectFilter connects to the filter.
func (s *Service) connectFilter() (err error) {
	if s.filter != nil {
		return nil
	}
	if s.filter, err = control.DialCompanion(s.runDir); err != nil {
		return err
	}
	if !s.rejected {
		err = s.filter.Note(s.name, 0, 0, control.ErrStarting)
	}
	if err == nil {
		var limits control.Limits
		if limits, err = control.Fleet(s.filter, s.key.Fingerprint()); err == nil {
			err = compare(s, &limits)
		}
		s.waiting, s.origins = limits.Waiting, limits.Hosts
		share.Room(s.replica, limits.Room, s.now())
	}
	if err == nil { // even without the server
		err = control.DisownAll(s.filter, s.fleet.Ignore)
	}
	if err == nil && s.joined {
		err = s.sync()
	}
	if err != nil {
		return s.failFilter("connect to the filter", err)
	}
	return nil
}

// compare compares the filter's statement fleet with the service's. The filter's name must be the
// same, because rows are sent under the service's name.
func compare(s *Service, l *control.Limits) error {
	s.differs = nil
	switch {
	case l.Settings == "": // a filter that was started before an upgrade
	case l.Name != s.fleet.Name:
		return fmt.Errorf("the filter is the host %s, and this service is %s; correct rundir or fleet, restart smtpd, then this service", l.Name, s.fleet.Name)
	case l.Settings != s.fleet.String():
		s.differs = errors.New("the filter and this service were started with different fleet statements; restart smtpd, then this service")
	}
	return nil
}

// sync exchanges all rows with a filter that has restarted: the filter lacks the rows of other
// hosts, and has not sent its own rows. Once the filter has received the rows of all hosts, sync
// lets it enforce the bans imposed by other hosts. If the server may just have lost its rows, sync
// first waits until the other hosts have sent their rows again.
func (s *Service) sync() error {
	if !s.synced {
		if err := s.resend(); err != nil {
			return err
		}
	}
	if !ready(s) {
		return nil
	}
	err := control.SendComplete(s.filter)
	s.confirmed = err == nil
	return err
}

// ready reports whether the filter may now enforce the bans imposed by other hosts.
func ready(s *Service) bool {
	return !s.confirmed && complete(s) && !(s.waiting && time.Now().Before(s.returned))
}

func (s *Service) resend() error {
	s.replica.Resend()
	if err := s.handOver(); err != nil {
		return err
	}
	if err := s.receive(true); err != nil {
		return err
	}
	s.synced = true
	return nil
}

// handOver sends the other hosts' rows to the filter.
func (s *Service) handOver() error {
	for {
		rows := s.replica.Changed(rowsPerRequest, s.now())
		if len(rows) == 0 {
			return nil
		}
		if err := control.SendForeign(s.filter, s.skewSeconds(), rows); err != nil {
			return err
		}
	}
}

// receive receives this host's changed rows, or all of them.
func (s *Service) receive(all bool) error {
	for {
		list, rows, err := control.Rows(s.filter, s.skewSeconds(), all)
		if err != nil {
			return err
		}
		s.keep(s.replica.Own(rows, s.now()))
		for _, host := range list.Drop {
			if err := drop(s, host); err != nil {
				return err
			}
		}
		if !list.More {
			return nil
		}
		all = false
	}
}

// drop drops the rows of a host, both here and in the filter. The filter then receives the rows
// that other hosts have as well.
func drop(s *Service, host string) error {
	n, mark := s.replica.Drop(host, s.now())
	if host != s.fleet.Name {
		s.keep([]share.Row{mark})
	}
	d, err := control.Disown(s.filter, host)
	if err != nil {
		return err
	}
	if err := s.handOver(); err != nil {
		return err
	}
	return control.SendDropped(s.filter, host, max(n, d.Rows))
}

// keep stores rows that must be sent to the server.
func (s *Service) keep(rows []share.Row) {
	for _, r := range rows {
		s.unsent[field(&r)] = r
	}
}

// publish sends rows to the server. The rows are kept until the server has confirmed them.
func (s *Service) publish(ctx context.Context) error {
	for some := range slices.Chunk(slices.Collect(maps.Values(s.unsent)), rowsPerMessage) {
		s.sent++
		if err := s.server.publish(ctx, s.sent, some); err != nil {
			s.sent-- // repeat the number, so that other hosts see no gap
			return err
		}
		for i := range some {
			delete(s.unsent, field(&some[i]))
		}
	}
	return nil
}

// maintain checks the server, searches for new hosts and reports the hosts' status.
func (s *Service) maintain(ctx context.Context) error {
	if time.Now().Before(s.next.upkeep) {
		return nil
	}
	s.next.upkeep = time.Now().Add(upkeep)
	if err := s.upkeep(ctx); err != nil {
		return failServer(s, "server", err)
	}
	if err := s.handOver(); err != nil { // rows that the filter lacks must not be counted in the status
		return s.failFilter("rows for the filter", err)
	}
	if err := control.SendHosts(s.filter, s.hosts()); err != nil {
		s.dropFilter()
		return fmt.Errorf("status for the filter: %w", err)
	}
	return nil
}

// sameName is the problem of a host whose name another companion announces.
const sameName = "another host has the same name, or companion share runs twice on this host; change the statement fleet, or stop the second service"

// announce announces this host. If the server is full, it rejects announcements, but still answers
// queries. When another host with the same name has left, this host restores its own rows.
func (s *Service) announce(ctx context.Context) error {
	kept, other, err := s.server.alive(ctx)
	refused := s.unannounced != nil
	if _, answered := valkey.IsValkeyErr(err); answered {
		s.unannounced = fmt.Errorf("announce this host: %w", remedy(err))
		return nil
	}
	if s.unannounced = nil; err != nil {
		return err
	}
	left := s.rival && !other
	if s.rival = other && s.announced; s.rival {
		s.wrong[s.fleet.Name] = sameName
	} else {
		delete(s.wrong, s.fleet.Name)
	}
	s.announced = true
	if left {
		if err := readOwn(ctx, s); err != nil {
			return err
		}
	}
	if !kept || refused { // without announcements, this host would not notice that its rows are lost
		s.keep(s.replica.Rows(s.fleet.Name))
	}
	return nil
}

func (s *Service) upkeep(ctx context.Context) error {
	if err := s.announce(ctx); err != nil {
		return err
	}
	if err := checkKey(ctx, s); err != nil {
		return err
	}
	if err := discover(ctx, s); err != nil {
		return err
	}
	for _, h := range s.replica.Missed(s.now()) {
		want(s, h, false)
	}
	if time.Now().Before(s.next.expire) {
		return nil
	}
	s.next.expire = time.Now().Add(expireEvery)
	for some := range slices.Chunk(s.replica.Expire(s.now()), rowsPerMessage) {
		if err := s.server.remove(ctx, some); err != nil {
			return err
		}
	}
	if s.replica.Retry(s.now()) {
		s.synced = false // makes the filter send all of this host's rows again
	}
	return nil
}

// hosts returns the other hosts' status.
func (s *Service) hosts() []share.HostStatus {
	list, wrong := s.replica.Hosts(), wrongHosts(s)
	for _, name := range slices.Sorted(maps.Keys(wrong)) {
		i := slices.IndexFunc(list, func(h share.HostStatus) bool { return h.Name == name })
		if i < 0 {
			list, i = append(list, share.HostStatus{Name: name}), len(list)
		}
		list[i].Problem = wrong[name]
	}
	for i := range list {
		list[i].By = share.ByServer
		if s.server != nil {
			list[i].Heard = s.server.heard[list[i].Name]
		}
	}
	return slices.DeleteFunc(list, func(h share.HostStatus) bool { // a host without any data has left
		return h.Rows == 0 && h.Heard.IsZero() && h.Problem == ""
	})
}
