package sharing

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/valkey-io/valkey-go"

	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/share"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

// Keys in Valkey. The braces put all keys into the same slot of a cluster, so that one command can
// read several streams.
//
//	{scanwatch}:key          fingerprint of the fleet's key, and the time in seconds
//	                         since 1970 at which a host has set it
//	{scanwatch}:hosts        set of the names of the hosts
//	{scanwatch}:rows:HOST    hash of the rows of a host, each a message
//	{scanwatch}:log:HOST     stream of the changes of a host, each a message
//	{scanwatch}:alive:HOST   message without rows, expires
const keyPrefix = "{scanwatch}:"

func rowsKey(host string) string  { return keyPrefix + "rows:" + host }
func logKey(host string) string   { return keyPrefix + "log:" + host }
func aliveKey(host string) string { return keyPrefix + "alive:" + host }

const (
	hostsKey       = keyPrefix + "hosts"
	fingerprintKey = keyPrefix + "key"
)

const (
	// maxLog is the number of messages kept in a stream. A host that has missed more messages must
	// read all rows again.
	maxLog = 1000
	// keepRows is the time after which the rows of a vanished host are deleted.
	keepRows = 30 * 24 * time.Hour
	// keepAlive is the time after which a companion counts as stopped if it has not announced
	// itself.
	keepAlive = 30 * time.Second

	// maxShort is the last byte that is read from a short value, because every user of the server can
	// make some of these values long.
	maxShort = 4095

	// maxSnapshot is the maximum number of rows read from one host.
	maxSnapshot = 1_000_000

	requestTimeout = 5 * time.Second
	// isolateTimeout is the timeout of the requests for all streams together.
	isolateTimeout = time.Minute
	rowsPerMessage = 500
	rowsPerScan    = 200 // with a slow network, the answer must arrive within requestTimeout
)

// A server is a connection to Valkey.
type server struct {
	client valkey.Client
	key    fleetkey.Key
	self   string
	run    uint64            // of this companion
	last   map[string]string // id of every other host's latest message
	// heard contains the time at which every other host was last heard, by this host's clock.
	heard map[string]time.Time
	runs  map[string]uint64 // latest run of every other host's companion, or 0 if it has stopped
	// announced is set after the first announcement on this connection.
	announced bool
	claimed   time.Time           // server's time at which a host set the fleet's key
	cursor    uint64              // position in the set of hosts
	strange   map[string]struct{} // names without a valid message whose rows have been read
}

// options returns the client library's options. It reads the password file and the
// certificates.
func options(s *rules.Share) (valkey.ClientOption, error) {
	o := valkey.ClientOption{
		Username: s.Login, ClientName: "scanwatch", DisableCache: true, DisableRetry: true,
		Dialer: net.Dialer{Timeout: requestTimeout}, ConnWriteTimeout: 2 * requestTimeout,
		BlockingPoolSize: 4, RingScaleEachConn: 8, ReadBufferEachConn: 64 << 10, WriteBufferEachConn: 64 << 10,
	}
	o.Sentinel.MasterSet = s.Sentinel
	if s.Password != "" {
		var err error
		if o.Password, err = password(s.Password); err != nil {
			return o, fmt.Errorf("password: %w; the file must have mode 400 and belong to the user of companion share", err)
		}
	}
	sockets := make(map[string]string)
	for i, name := range s.Servers {
		if filepath.IsAbs(name) {
			// The library identifies servers by address and port.
			address := fmt.Sprintf("socket%d:1", i)
			sockets[address] = name
			o.InitAddress = append(o.InitAddress, address)
			continue
		}
		u, err := url.Parse(name)
		if err != nil {
			return o, err
		}
		port := u.Port()
		if port == "" {
			port = "6379"
		}
		o.InitAddress = append(o.InitAddress, net.JoinHostPort(u.Hostname(), port))
		if strings.HasSuffix(u.Scheme, "s") && u.Scheme != "redis" {
			o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
		}
		if path := strings.Trim(u.Path, "/"); path != "" {
			if o.SelectDB, err = strconv.Atoi(path); err != nil {
				return o, err
			}
		}
	}
	o.DialCtxFn = func(ctx context.Context, address string, d *net.Dialer, t *tls.Config) (net.Conn, error) {
		network, dial := "tcp", d.DialContext
		if path := sockets[address]; path != "" {
			network, address = "unix", path
		} else if t != nil {
			dial = (&tls.Dialer{NetDialer: d, Config: t}).DialContext
		}
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &guard{Conn: conn}, nil
	}
	if s.CA != "" && o.TLSConfig != nil {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return o, fmt.Errorf("ca: %w; copy the certificate of the server's authority to this file", err)
		}
		o.TLSConfig.RootCAs = x509.NewCertPool()
		if !o.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
			return o, fmt.Errorf("%s has no certificates", s.CA)
		}
	}
	return o, nil
}

// password reads a password file.
func password(name string) (string, error) {
	text, err := fleetkey.ReadFile(name)
	return strings.TrimRight(string(text), "\r\n"), err
}

// connect connects to Valkey, and checks that the fleet uses the same key.
//
// If claim is set and the fleet has no key, this host's key becomes the fleet's key.
func connect(ctx context.Context, o valkey.ClientOption, key fleetkey.Key, self string, run uint64, claim bool) (*server, error) {
	client, err := valkey.NewClient(o)
	switch {
	case err == nil:
	case o.TLSConfig == nil && errors.Is(err, syscall.ECONNRESET): // omit the local port, which varies
		return nil, fmt.Errorf("%w; if the port needs TLS, use valkeys://", syscall.ECONNRESET)
	case o.TLSConfig == nil && errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%w; if the port needs TLS, use valkeys://", err)
	case o.TLSConfig != nil && errors.Is(err, context.DeadlineExceeded): // a server without TLS waits for more input
		return nil, fmt.Errorf("%w; if the port has no TLS, use the port of tls-port, or valkey://", err)
	default:
		return nil, err
	}
	s := &server{client: client, key: key, self: self, run: run, last: make(map[string]string), heard: make(map[string]time.Time), runs: make(map[string]uint64), strange: make(map[string]struct{})}
	if err := s.check(ctx, claim); err != nil {
		client.Close()
		return nil, err
	}
	return s, nil
}

func (s *server) close() { s.client.Close() }

// errKey means that the fleet uses a different key. errNoKey means that the server has no key now,
// but had a different key before.
var (
	errKey   = errors.New("the other hosts use a different fleet key")
	errNoKey = errors.New("the other hosts use a different fleet key; waiting until one of them is back")
)

// check compares this host's key with the fleet's key. If the fleet has no key and claim is set,
// this host's key becomes the fleet's key.
func (s *server) check(ctx context.Context, claim bool) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	get := s.client.B().Getrange().Key(fingerprintKey).Start(0).End(maxShort).Build().Pin()
	text, err := s.client.Do(ctx, get).ToString()
	if err == nil && text == "" && claim {
		if err := s.claim(ctx); err != nil {
			return err
		}
		text, err = s.client.Do(ctx, get).ToString()
	}
	own := s.key.Fingerprint()
	fleet, seconds, _ := strings.Cut(text, " ")
	switch {
	case err != nil:
		return err
	case text == "":
		return errNoKey
	case fleet != own:
		return fmt.Errorf("%w: %.40q, this host has %s; copy the key file from another host", errKey, fleet, own)
	}
	since, _ := strconv.ParseInt(seconds, 10, 64) // without a valid time, the key is considered old
	s.claimed = time.Unix(since, 0)
	return nil
}

// claim sets the key of the fleet, unless another host has done so.
func (s *server) claim(ctx context.Context) error {
	ahead, err := s.skew(ctx)
	if err != nil {
		return err
	}
	value := s.key.Fingerprint() + " " + strconv.FormatInt(time.Now().Add(ahead).Unix(), 10)
	err = s.client.Do(ctx, s.client.B().Set().Key(fingerprintKey).Value(value).Nx().Build()).Error()
	if valkey.IsValkeyNil(err) {
		return nil
	}
	return err
}

const (
	// maxSkew is the maximum difference between the server's clock and this host's clock. A larger
	// difference would end other hosts' bans too early or too late.
	maxSkew = time.Hour
	// lastSecond is the latest plausible clock time, in seconds since 1970.
	lastSecond = 1 << 33
)

var errClock = fmt.Errorf("the clocks of the server and this host differ by more than %v; correct the wrong one", text.ShortDuration(maxSkew))

// skew returns the server's time minus this host's time.
func (s *server) skew(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	start := time.Now()
	t, err := s.client.Do(ctx, s.client.B().Time().Build()).AsStrSlice()
	if err != nil {
		return 0, err
	}
	if len(t) != 2 {
		return 0, errors.New("unexpected answer to TIME")
	}
	seconds, err := strconv.ParseInt(t[0], 10, 64)
	if err != nil {
		return 0, err
	}
	micros, err := strconv.ParseInt(t[1], 10, 64)
	if err != nil {
		return 0, err
	}
	if seconds < 0 || seconds > lastSecond || micros < 0 || micros > 1e6 {
		return 0, errClock
	}
	middle := start.Add(time.Since(start) / 2)
	skew := time.UnixMicro(seconds*1e6 + micros).Sub(middle)
	if skew.Abs() > maxSkew {
		return 0, errClock
	}
	return skew, nil
}

// A received message comes from another host.
type received struct {
	host string
	message
	err error
}

// read waits for other hosts' messages for at most the given time.
func (s *server) read(ctx context.Context, wait time.Duration) ([]received, error) {
	if len(s.last) == 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		return nil, ctx.Err()
	}
	reading, cancel := context.WithTimeout(ctx, wait+requestTimeout)
	defer cancel()
	var keys, ids []string
	for host, id := range s.last {
		keys, ids = append(keys, logKey(host)), append(ids, id)
	}
	all, err := s.messages(reading, wait, keys, ids)
	if unusable(err) {
		return s.isolate(ctx)
	}
	return all, err
}

// messages waits for messages in streams after the given ids.
func (s *server) messages(ctx context.Context, wait time.Duration, keys, ids []string) (all []received, err error) {
	streams, err := s.client.Do(ctx, s.client.B().Xread().Count(maxRead).Block(wait.Milliseconds()).Streams().Key(keys...).Id(ids...).Build()).AsXRead()
	if valkey.IsValkeyNil(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for key, entries := range streams {
		host := strings.TrimPrefix(key, logKey(""))
		for i := range entries {
			s.last[host] = entries[i].ID
			one := received{host: host}
			one.message, one.err = decode(s.key, host, []byte(entries[i].FieldValues["rows"]))
			all = append(all, one)
		}
	}
	return all, nil
}

// wrongType reports whether a key in the server has an unexpected type.
func wrongType(err error) bool {
	e, ok := valkey.IsValkeyErr(err)
	return ok && strings.HasPrefix(e.Error(), "WRONGTYPE")
}

// unusable reports whether an error concerns only the data of the host in the request.
func unusable(err error) bool {
	return errors.Is(err, errWrongKey) || errors.Is(err, errInvalid) || errors.Is(err, errTooMany) || errors.Is(err, errTooSlow) ||
		errors.Is(err, errReply) || wrongType(err)
}

// isolate reads each stream in a separate request, and stops reading from hosts whose stream cannot
// be read. One such stream makes the request for all streams fail.
func (s *server) isolate(ctx context.Context) (all []received, err error) {
	ctx, cancel := context.WithTimeout(ctx, isolateTimeout)
	defer cancel()
	for _, host := range slices.Sorted(maps.Keys(s.last)) {
		some, err := s.messages(ctx, time.Millisecond, []string{logKey(host)}, []string{s.last[host]})
		if unusable(err) {
			delete(s.last, host)
			some, err = []received{{host: host, err: errInvalid}}, nil
		}
		if all = append(all, some...); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// maxRead is the maximum number of messages that read returns for each host.
const maxRead = 50

// field identifies a row in a host's hash.
func field(r *share.Row) string { return r.Bucket + "\x00" + r.Key }

// publish writes rows of this host. number is the message's number.
func (s *server) publish(ctx context.Context, number uint64, rows []share.Row) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	set := s.client.B().Hset().Key(rowsKey(s.self)).FieldValue()
	for i := range rows {
		set = set.FieldValue(field(&rows[i]), string(encode(s.key, s.self, &message{run: s.run, rows: rows[i : i+1]})))
	}
	log := s.client.B().Xadd().Key(logKey(s.self)).Maxlen().Almost().Threshold(strconv.Itoa(maxLog)).Id("*").
		FieldValue().FieldValue("rows", string(encode(s.key, s.self, &message{s.run, number, rows}))).Build()
	for _, r := range s.client.DoMulti(ctx, set.Build(), log) {
		if err := r.Error(); err != nil {
			return err
		}
	}
	return nil
}

// remove removes this host's expired rows.
func (s *server) remove(ctx context.Context, rows []share.Row) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var fields []string
	for i := range rows {
		fields = append(fields, field(&rows[i]))
	}
	return s.client.Do(ctx, s.client.B().Hdel().Key(rowsKey(s.self)).Field(fields...).Build()).Error()
}

// alive announces this host. kept reports whether the server has kept this host's rows since the
// previous announcement on this connection. other reports whether another companion uses the same
// host name.
//
// The server may lose its rows in a restart between two requests, and the client library then
// reconnects without an error. The next row would create this host's hash again. Only the missing
// announcement therefore shows the loss.
func (s *server) alive(ctx context.Context) (kept, other bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	seconds := int64(keepAlive / time.Second)
	r := s.client.DoMulti(ctx,
		s.client.B().Set().Key(aliveKey(s.self)).Value(string(encode(s.key, s.self, &message{run: s.run}))).Get().ExSeconds(seconds).Build(),
		s.client.B().Sadd().Key(hostsKey).Member(s.self).Build(),
		s.client.B().Expire().Key(logKey(s.self)).Seconds(int64(keepRows/time.Second)).Build(),
		s.client.B().Expire().Key(rowsKey(s.self)).Seconds(int64(keepRows/time.Second)).Build(),
	)
	for i := range r {
		if err := r[i].Error(); err != nil && !valkey.IsValkeyNil(err) {
			return false, false, err
		}
	}
	before, err := r[0].ToString()
	kept, keptErr := r[3].AsBool()
	lost := s.announced && err != nil
	s.announced = true
	m, wrong := decode(s.key, s.self, []byte(before))
	return kept && !lost, err == nil && wrong == nil && m.run != s.run, keptErr
}

// hear stores the time at which a host was heard. A message's id starts with the server's time in
// milliseconds. ahead is the server's time minus this host's time.
func (s *server) hear(host, id string, ahead time.Duration) {
	millis, _, _ := strings.Cut(id, "-")
	n, err := strconv.ParseInt(millis, 10, 64)
	at := time.UnixMilli(n).Add(-ahead)
	if now := time.Now(); at.After(now) { // a host can choose any id, even in the future
		at = now
	}
	if err == nil && n > 0 && at.After(s.heard[host]) {
		s.heard[host] = at
	}
}
