package control

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/filter/share"
	"scanwatch/internal/kv"
)

// Sharing connects the companion share to the state. The zero value is ready for use,
// except for Memory, Now and Log.
type Sharing struct {
	Memory *memory.Memory
	Now    func() int64
	// Companion is set if there is a companion share.
	Companion bool
	// Problem is the reason why this host cannot share rows, or "".
	Problem string
	// Fingerprint is the fingerprint of the fleet's key, which is compared with the
	// companion's.
	Fingerprint string
	// Name is this host's name, and Settings is the text of the statement fleet, which are compared
	// with the companion's.
	Name, Settings string
	Log            *slog.Logger

	mu    sync.Mutex
	hosts []share.HostStatus          // from the companion
	files map[string]share.HostStatus // from imported files
	drops []*drop                     // in the order of the commands
}

// A drop is an operator's command that is waiting for the companion.
type drop struct {
	host string
	sent bool
	done chan int // receives the number of rows
}

// maxRows is the maximum number of rows in an answer to rows.
const maxRows = 20_000

// maxDrops is the maximum number of commands waiting for the companion.
const maxDrops = 100

// dropPatience limits how long a command waits for the companion.
const dropPatience = 10 * time.Second

// Arguments of the rows command.
const (
	allRows = "all"
	changes = "changes"
)

// RowList describes the rows that follow it in the answer to "rows".
type RowList struct {
	Entries int `json:"entries"`
	// More is set if there are more rows.
	More bool `json:"more,omitempty"`
	// Drop lists the hosts whose rows the operator has dropped.
	Drop []string `json:"drop,omitempty"`
}

type sharedRow struct {
	Bucket string `json:"b"`
	Key    []byte `json:"k"`
	Value  []byte `json:"v,omitempty"`
}

// Hosts returns the other hosts. A host is included if the companion knows it, if its file
// has been imported, or if it has rows in the state.
func (s *Sharing) Hosts() []share.HostStatus {
	list, files := s.said()
	if s.Fingerprint == "" && len(files) == 0 {
		return list // without other hosts, the rows need not be counted
	}
	list = s.listed(list, files)
	displaced := s.Memory.Displaced()
	for i := range list {
		if h := &list[i]; h.Problem == "" && displaced[h.Name] > 0 {
			h.Omitted = displaced[h.Name]
			h.Problem = "all hosts together have too many rows, and this host has the most; some of its rows are not in use on this host"
		}
	}
	return list
}

// listed adds the hosts in files, and the hosts with rows in the state, to a list.
func (s *Sharing) listed(list []share.HostStatus, files map[string]share.HostStatus) []share.HostStatus {
	rows := s.Memory.Origins()
	for _, h := range list {
		delete(rows, h.Name) // the companion knows all rows of its hosts
		delete(files, h.Name)
	}
	for name := range rows {
		if _, ok := files[name]; !ok {
			files[name] = share.HostStatus{Name: name}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := files[name]
		h.Rows = rows[name]
		list = append(list, h)
	}
	return list
}

// said returns copies of the hosts' status, as sent by the companion and by imports.
func (s *Sharing) said() ([]share.HostStatus, map[string]share.HostStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := maps.Clone(s.files)
	if files == nil {
		files = make(map[string]share.HostStatus)
	}
	return slices.Clone(s.hosts), files
}

// Commands returns the commands for the companion share.
func (s *Sharing) Commands() []Command {
	return []Command{
		{"fleet", 1, s.fleet},
		{"rows", 2, s.rows},
		{"foreign", 2, s.foreign},
		{"hosts", 2, s.setHosts},
		{"dropped", 2, s.dropped},
		{"disown", 1, s.disown},
		{"complete", 0, s.complete},
	}
}

// OperatorCommands returns the commands for the operator.
func (s *Sharing) OperatorCommands() []Command {
	return []Command{{"drop", 1, s.drop}, {"partial", 2, s.partial}, {"imported", 1, s.imported}, {"disown", 1, s.disown}}
}

// fleet compares the companion's key with the filter's.
func (s *Sharing) fleet(_ context.Context, a *Answer, args []string) error {
	switch {
	case s.Problem != "":
		return errors.New(s.Problem)
	case args[0] != s.Fingerprint:
		return fmt.Errorf("the filter was started with a different fleet key (%s); restart smtpd", s.Fingerprint)
	}
	if !s.Memory.Bans.Loaded() {
		return memory.ErrNotLoaded // until then, it is unknown whether bans are waiting
	}
	s.Memory.Announce() // before the companion sends rows of other hosts
	return a.JSON(Limits{s.Memory.Bans.Waiting(), s.Memory.Room(), s.Name, s.Settings, slices.Sorted(maps.Keys(s.Memory.Origins()))})
}

const maxSkew = 1 << 31

func parseSkew(s string) (int64, error) {
	skew, err := strconv.ParseInt(s, 10, 64)
	if err != nil || skew < -maxSkew || skew > maxSkew {
		return 0, fmt.Errorf("parse skew %q: not a number of seconds", s)
	}
	return skew, nil
}

func (s *Sharing) rows(_ context.Context, a *Answer, args []string) error {
	skew, err := parseSkew(args[0])
	switch {
	case err != nil:
		return err
	case s.Problem != "":
		return errors.New(s.Problem)
	case args[1] == allRows:
		s.Memory.Announce()
	case args[1] != changes:
		return fmt.Errorf("%q is neither %s nor %s", args[1], allRows, changes)
	}
	if !s.Memory.Bans.Loaded() {
		return memory.ErrNotLoaded
	}
	rows := s.Memory.Outgoing(maxRows, skew)
	if err := a.JSON(RowList{len(rows), len(rows) == maxRows, s.pending()}); err != nil {
		return err
	}
	var buf []byte
	for i := range rows {
		line, err := json.Marshal(sharedRow{rows[i].Bucket, rows[i].Key, rows[i].Value})
		if err != nil {
			return err
		}
		if buf = append(append(buf, line...), '\n'); len(buf) > chunk || i == len(rows)-1 {
			if _, err := a.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	return nil
}

// pending returns the hosts to be dropped that the companion does not know yet.
func (s *Sharing) pending() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.drops {
		if !d.sent {
			d.sent = true
			names = append(names, d.host)
		}
	}
	return names
}

var encoding = base64.RawURLEncoding

func (s *Sharing) foreign(_ context.Context, a *Answer, args []string) error {
	return s.incoming(a, args, false)
}

func (s *Sharing) partial(_ context.Context, a *Answer, args []string) error {
	return s.incoming(a, args, true)
}

func (s *Sharing) incoming(a *Answer, args []string, partial bool) error {
	if !s.Memory.Bans.Loaded() {
		return memory.ErrNotLoaded // so that the companion sends the rows again
	}
	skew, err := parseSkew(args[0])
	if err != nil {
		return err
	}
	var list []memory.Foreign
	for one := range strings.SplitSeq(args[1], ",") {
		f, err := parseForeign(one)
		if err != nil {
			return err
		}
		f.Partial = partial
		list = append(list, f)
	}
	freed, err := s.Memory.Incoming(list, skew, s.Now())
	s.logFreed(freed)
	if err != nil { // not returned: the valid rows are stored, and an error would make the companion resend all rows forever
		s.Log.Warn("invalid row from another host, skipped", "err", err)
	}
	return a.JSON(struct{}{})
}

// maxLogged is the maximum number of prefixes in a log line.
const maxLogged = 10

// logFreed logs, in a single line, the bans that other hosts have ended.
func (s *Sharing) logFreed(freed []memory.Freed) {
	if len(freed) == 0 {
		return
	}
	var prefixes, hosts []string
	for _, f := range freed[:min(len(freed), maxLogged)] {
		prefixes = append(prefixes, f.Prefix.String())
		if f.Origin != "" && !slices.Contains(hosts, f.Origin) {
			hosts = append(hosts, f.Origin)
		}
	}
	s.Log.Warn("unbanned by other hosts", "bans", len(freed), "prefixes", strings.Join(prefixes, ","), "hosts", strings.Join(hosts, ","))
}

// parseForeign parses TABLE;KEY;VALUE;HOST.
func parseForeign(s string) (f memory.Foreign, err error) {
	part := strings.Split(s, ";")
	if len(part) != 4 {
		return f, fmt.Errorf("parse row %.80q: must be TABLE;KEY;VALUE;HOST", s)
	}
	f.Bucket, f.Origin = part[0], part[3]
	if f.Key, err = encoding.DecodeString(part[1]); err == nil && part[2] != "" {
		f.Value, err = encoding.DecodeString(part[2])
	}
	if err != nil {
		return f, fmt.Errorf("parse row %.80q: %w", s, err)
	}
	if f.Origin != "" && !share.ValidName(f.Origin) {
		return f, fmt.Errorf("parse row %.80q: %.80q is not the name of a host", s, f.Origin)
	}
	return f, nil
}

// The first argument of hosts.
const (
	firstHosts = "first"
	moreHosts  = "more"
)

const maxHosts = 1000

func (s *Sharing) setHosts(_ context.Context, a *Answer, args []string) error {
	list, err := parseHosts(args[1])
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if args[0] == moreHosts {
		list = append(s.hosts, list...)
	}
	s.hosts = list[:min(len(list), maxHosts)]
	return a.JSON(struct{}{})
}

func parseHosts(arg string) ([]share.HostStatus, error) {
	list := []share.HostStatus{}
	text, err := url.PathUnescape(arg)
	if err == nil {
		err = json.Unmarshal([]byte(text), &list)
	}
	if err != nil {
		return nil, fmt.Errorf("parse hosts: %w", err)
	}
	return list, nil
}

// imported records the hosts whose files have been imported.
func (s *Sharing) imported(_ context.Context, a *Answer, args []string) error {
	list, err := parseHosts(args[0])
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = make(map[string]share.HostStatus)
	}
	for _, h := range list {
		if _, known := s.files[h.Name]; known || len(s.files) < maxHosts && share.ValidName(h.Name) {
			h.By = share.ByFile
			s.files[h.Name] = h
		}
	}
	return a.JSON(struct{}{})
}

// forgetFile removes the status of a host's file.
func (s *Sharing) forgetFile(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, host)
}

// disown deletes the rows of another host from the filter.
func (s *Sharing) disown(_ context.Context, a *Answer, args []string) error {
	s.forgetFile(args[0])
	return a.JSON(Dropped{args[0], s.Memory.Disown(args[0])})
}

// complete is called when the filter has received the rows of all other hosts.
func (s *Sharing) complete(_ context.Context, a *Answer, _ []string) error {
	s.Memory.Complete()
	return a.JSON(struct{}{})
}

// known returns an error if there is no other host with this name.
func (s *Sharing) known(name string) error {
	names := slices.Collect(maps.Keys(s.Memory.Origins()))
	for _, h := range s.Hosts() {
		names = append(names, h.Name)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case slices.Contains(names, name):
		return nil
	case name == s.Name:
		return fmt.Errorf("%.80q is this host; run the command on the other hosts", name)
	case len(names) == 0:
		return fmt.Errorf("no host %.80q; no other host is known", name)
	}
	return fmt.Errorf("no host %.80q; known: %s", name, strings.Join(names[:min(len(names), maxNamed)], ", "))
}

// maxNamed is the maximum number of hosts in an error.
const maxNamed = 20

// drop waits until the companion has dropped the rows of a host. The companion also deletes these
// rows in the filter, and then sends the filter any rows that other hosts have as well. If the
// companion does not answer, nothing changes. Without a companion, the rows are deleted only in the
// filter.
func (s *Sharing) drop(ctx context.Context, a *Answer, args []string) error {
	if err := s.known(args[0]); err != nil {
		return err
	}
	if !s.Companion {
		return s.disown(ctx, a, args)
	}
	d := &drop{host: args[0], done: make(chan int, 1)}
	if !s.add(d) {
		return fmt.Errorf("the companion share is not answering: %d requests are already waiting", maxDrops)
	}
	defer s.remove(d)
	select {
	case rows := <-d.done:
		s.forget(d.host)
		return a.JSON(Dropped{d.host, rows})
	case <-time.After(dropPatience):
		if s.remove(d); d.sent {
			return fmt.Errorf("the companion share is still dropping the rows; run scanwatch share drop %s again", d.host)
		}
		return fmt.Errorf("the companion share has not answered within %v; does it run and reach the server? Without them, use ignore in fleet", dropPatience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// forget corrects a host's status until the companion reports it again.
func (s *Sharing) forget(host string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts = slices.Clone(s.hosts)
	for i := range s.hosts {
		if s.hosts[i].Name == host {
			s.hosts[i] = share.HostStatus{Name: host}
		}
	}
}

func (s *Sharing) add(d *drop) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.drops) == maxDrops {
		return false
	}
	s.drops = append(s.drops, d)
	return true
}

func (s *Sharing) remove(d *drop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drops = slices.DeleteFunc(s.drops, func(other *drop) bool { return other == d })
}

func (s *Sharing) dropped(_ context.Context, a *Answer, args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("parse %q: not a number", args[1])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.drops {
		if d.host == args[0] && d.sent {
			select {
			case d.done <- n:
			default:
			}
		}
	}
	return a.JSON(struct{}{})
}

// Dropped is the answer to "drop".
type Dropped struct {
	Host string `json:"host"`
	Rows int    `json:"rows"`
}

// Drop drops all data from another host.
func Drop(c *Client, host string) (d Dropped, err error) {
	err = c.ask(&d, "drop", host)
	return d, err
}

// Disown deletes a host's rows from the filter.
func Disown(c *Client, host string) (d Dropped, err error) {
	err = c.ask(&d, "disown", host)
	return d, err
}

// DisownAll deletes the rows of ignored hosts from the filter.
func DisownAll(c *Client, hosts []string) error {
	for _, host := range hosts {
		if _, err := Disown(c, host); err != nil {
			return err
		}
	}
	return nil
}

// Limits is the answer to "fleet".
type Limits struct {
	// Waiting is set if the standing on other hosts has never arrived. Until it arrives, the filter
	// does not enforce their bans.
	Waiting bool `json:"waiting"`
	// Room is the maximum number of other hosts' rows, by bucket.
	Room map[string]int `json:"room"`
	// Name and Settings are the fields of Sharing.
	Name     string `json:"name"`
	Settings string `json:"settings"`
	// Hosts are the other hosts whose rows the filter has.
	Hosts []string `json:"hosts"`
}

// Fleet returns an error if the filter and the companion have different keys.
func Fleet(c *Client, fingerprint string) (l Limits, err error) {
	err = c.ask(&l, "fleet", fingerprint)
	return l, err
}

// SendComplete announces that the filter has received the rows of all other hosts.
func SendComplete(c *Client) error { return c.ask(new(struct{}), "complete") }

// Rows returns this host's rows that have changed since the previous call, or all rows if all is
// set. Times in the rows are from this host's clock, plus skew in seconds.
func Rows(c *Client, skew int64, all bool) (list RowList, rows []kv.Entry, err error) {
	how := changes
	if all {
		how = allRows
	}
	if err := c.ask(&list, "rows", strconv.FormatInt(skew, 10), how); err != nil {
		return list, nil, err
	}
	for range list.Entries {
		line, err := c.line()
		if err != nil {
			return list, nil, fmt.Errorf("read rows: %w", noEOF(err))
		}
		var row sharedRow
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			return list, nil, fmt.Errorf("read rows: %w", err)
		}
		rows = append(rows, kv.Entry{Bucket: row.Bucket, Key: row.Key, Value: row.Value})
	}
	return list, rows, nil
}

// SendForeign sends rows from other hosts. Each row combines the information from all
// other hosts.
func SendForeign(c *Client, skew int64, rows []memory.Foreign) error {
	return sendRows(c, "foreign", skew, rows)
}

// SendPartial sends rows from some of the other hosts; see memory.Foreign.
func SendPartial(c *Client, rows []memory.Foreign) error { return sendRows(c, "partial", 0, rows) }

func sendRows(c *Client, command string, skew int64, rows []memory.Foreign) error {
	prefix := strconv.FormatInt(skew, 10)
	return sendList(rows, maxLine-len("foreign  \n")-len(prefix), func(f *memory.Foreign) string {
		return strings.Join([]string{f.Bucket, encoding.EncodeToString(f.Key), encoding.EncodeToString(f.Value), f.Origin}, ";")
	}, func(line string) error { return c.ask(new(struct{}), command, prefix, line) })
}

// sendList sends items in lines of limited length, separated by commas.
func sendList[T any](items []T, room int, format func(*T) string, send func(line string) error) error {
	var line strings.Builder
	for i := range items {
		one := format(&items[i])
		if line.Len() > 0 && line.Len()+len(",")+len(one) > room {
			if err := send(line.String()); err != nil {
				return err
			}
			line.Reset()
		}
		if line.Len() > 0 {
			line.WriteByte(',')
		}
		line.WriteString(one)
	}
	if line.Len() == 0 {
		return nil
	}
	return send(line.String())
}

// SendImported announces the hosts whose files have been imported.
func SendImported(c *Client, hosts []share.HostStatus) error {
	for part := range slices.Chunk(hosts, someHosts) {
		text, err := json.Marshal(part)
		if err != nil {
			return err
		}
		if err := c.ask(new(struct{}), "imported", url.PathEscape(string(text))); err != nil {
			return err
		}
	}
	return nil
}

// someHosts is the number of hosts in a command.
const someHosts = 10

// SendHosts replaces the list of other hosts.
func SendHosts(c *Client, hosts []share.HostStatus) error {
	how := firstHosts
	for part := range slices.Chunk(hosts, someHosts) {
		text, err := json.Marshal(part)
		if err != nil {
			return err
		}
		if err := c.ask(new(struct{}), "hosts", how, url.PathEscape(string(text))); err != nil {
			return err
		}
		how = moreHosts
	}
	if len(hosts) == 0 {
		return c.ask(new(struct{}), "hosts", how, url.PathEscape("[]"))
	}
	return nil
}

// SendDropped announces that a host's rows have been dropped.
func SendDropped(c *Client, host string, rows int) error {
	return c.ask(new(struct{}), "dropped", host, strconv.Itoa(rows))
}
