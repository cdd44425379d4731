// Package facts writes and reads files with the rows that a host shares. A file consists of JSON
// lines with an authentication code at the end. Hosts that copy such files to each other, for
// example with rsync(1), need no server.
package facts

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"net/netip"
	"slices"
	"time"

	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/memory"
	"scanwatch/filter/share"
	"scanwatch/internal/kv"
	"scanwatch/internal/text"
)

// A header is the first line of a file.
type header struct {
	Schema int       `json:"schema"`
	Host   string    `json:"host"`
	Time   text.Time `json:"time"`
	// Names is the fingerprint of the key with which names are hashed, or empty if the file
	// contains only bans.
	Names string `json:"names,omitempty"`
}

// A line describes a row.
type line struct {
	Table string `json:"table"`
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
	// Ban describes a row of bans for human readers. Read ignores it.
	Ban *ban `json:"ban,omitempty"`
}

type ban struct {
	Prefix  netip.Prefix `json:"prefix"`
	Since   text.Time    `json:"since"`
	Until   text.Time    `json:"until"`
	Rule    string       `json:"rule"`
	Revoked bool         `json:"revoked,omitempty"`
	Range   bool         `json:"range,omitempty"` // an unban of all hosts and networks in the prefix
}

// An end is the last line of a file.
type end struct {
	Rows int    `json:"rows"`
	Code string `json:"code"` // HMAC-SHA-256 of all earlier lines
}

const (
	// MaxSize is the maximum size of a file in bytes.
	MaxSize = 256 << 20

	maxLine = 4096
	maxRows = 1_000_000
	// maxAhead is how far another host's clock may be ahead without a warning.
	maxAhead = 5 * time.Second
)

// An Exporter writes files for other hosts.
type Exporter struct {
	Host string
	Key  fleetkey.Key
	// Names is set if rows contain hashes with Key, and the file's readers have the same key.
	Names bool
}

// Write writes this host's rows, and returns their number.
func (e *Exporter) Write(w io.Writer, rows iter.Seq[kv.Entry], now time.Time) (n int, err error) {
	out := bufio.NewWriter(w)
	code := hmacOf(e.Key)
	put := func(v any) error {
		b, err := json.Marshal(v)
		if err == nil {
			b = append(b, '\n')
			_, _ = code.Write(b)
			_, err = out.Write(b)
		}
		return err
	}
	h := header{Schema: text.Schema, Host: e.Host, Time: text.At(now)}
	if e.Names {
		h.Names = e.Key.Fingerprint()
	}
	if err := put(h); err != nil {
		return 0, err
	}
	for row := range rows {
		if row.Value == nil || !e.Names && row.Bucket != memory.BansBucket {
			continue
		}
		one := line{Table: row.Bucket, Key: row.Key, Value: row.Value}
		if b, ok := memory.ReadBan(row.Key, row.Value); ok && row.Bucket == memory.BansBucket {
			one.Ban = &ban{b.Prefix, text.At(time.Unix(b.Since, 0)), text.At(time.Unix(b.Until, 0)), b.Rule, b.Revoked, b.Range}
		}
		if err := put(one); err != nil {
			return n, err
		}
		n++
	}
	b, err := json.Marshal(end{n, hex.EncodeToString(code.Sum(nil))})
	if err != nil {
		return n, err
	}
	if _, err := out.Write(append(b, '\n')); err != nil {
		return n, err
	}
	return n, out.Flush()
}

func hmacOf(key fleetkey.Key) hash.Hash { return key.Hash(fleetkey.PurposeFacts) }

// A File is another host's file.
type File struct {
	Host string
	Time time.Time
	Rows []share.Row
	// Omitted counts rows with names hashed with a different key.
	Omitted int
	// Friend is set if the host belongs to a different fleet; see Befriend.
	Friend bool
}

// Befriend marks a file from a host whose key is not the fleet's key. Because such a host chooses
// its own name, Befriend changes the name to one that no host of the fleet should have. The host's
// unbans end only its own bans.
func (f *File) Befriend() error {
	if f.Friend, f.Host = true, memory.FriendPrefix+f.Host; !share.ValidName(f.Host) {
		return fmt.Errorf("the name %s is too long", f.Host)
	}
	return nil
}

// Clock returns an error in the host's clock, detected by comparing the file's time with now, or
// "". Only a clock that is ahead can be detected, because a file may be of any age.
func (f *File) Clock(now time.Time) string {
	switch d := f.Time.Sub(now); {
	case d > maxAhead:
		return fmt.Sprintf("the clock of %s is at least %s ahead of this host's clock, and an unban within this time may have no effect; correct the clocks", f.Host, text.ShortDuration(d))
	case d < -maxAge:
		return fmt.Sprintf("the file is %s old, or the clock of %s is behind; the difference between the clocks is unknown", text.ShortDuration(-d), f.Host)
	}
	return ""
}

// maxAge is the age beyond which a file causes a note.
const maxAge = time.Hour

// Read reads and checks a file. If own is not empty, it is the fingerprint of the key with which
// this host hashes names. Errors include the line number.
//
// Read reads the file twice, so that rows without a valid code never use memory.
func Read(r io.ReadSeeker, key fleetkey.Key, own string) (*File, error) {
	if _, err := read(r, key, own, true); err != nil {
		return nil, err
	}
	if _, err := r.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return read(r, key, own, false)
}

// read reads a file once. If check is set, read only checks the file, and omits the rows.
func read(r io.Reader, key fleetkey.Key, own string, check bool) (*File, error) {
	in := bufio.NewReaderSize(r, maxLine)
	code := hmacOf(key)
	var h header
	var f *File
	for n := 1; ; n++ {
		b, err := in.ReadSlice('\n')
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, cut(err))
		}
		if f == nil {
			if err := strict(b, &h); err != nil {
				return nil, fmt.Errorf("line %d: not a file of scanwatch facts export: %w", n, err)
			}
			if h.Schema != text.Schema || !share.ValidName(h.Host) {
				return nil, fmt.Errorf("line %d: not a file of scanwatch facts export", n)
			}
			f = &File{Host: h.Host, Time: h.Time.Time}
		} else if one := endOf(b); one != nil {
			return f, f.check(one, n-2, code, in)
		} else if !check {
			if err := f.add(b, &h, own); err != nil {
				return nil, fmt.Errorf("line %d: %w", n, err)
			}
		}
		_, _ = code.Write(b)
		if n > maxRows {
			return nil, fmt.Errorf("more than %d lines", maxRows)
		}
	}
}

// endOf returns b as the last line of a file, or nil if b is not the last line.
func endOf(b []byte) *end {
	if !bytes.HasPrefix(b, []byte(`{"rows":`)) {
		return nil
	}
	one := new(end)
	if strict(b, one) != nil {
		return nil
	}
	return one
}

func cut(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("the file ends early")
	case errors.Is(err, bufio.ErrBufferFull):
		return fmt.Errorf("longer than %d bytes", maxLine)
	}
	return err
}

// strict decodes an object, and rejects unknown members.
func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

func (f *File) check(e *end, rows int, code hash.Hash, in *bufio.Reader) error {
	want, err := hex.DecodeString(e.Code)
	switch _, more := in.ReadByte(); {
	case err != nil || !hmac.Equal(want, code.Sum(nil)):
		return errors.New("authenticated with a different key, or changed")
	case e.Rows != rows:
		return fmt.Errorf("%d of %d rows", rows, e.Rows)
	case more == nil:
		return errors.New("lines after the end")
	}
	return nil
}

// add adds a row. The stamp of a ban or unban is its own time. The stamp of any other row is the
// file's time.
func (f *File) add(b []byte, h *header, own string) error {
	var one line
	if err := strict(b, &one); err != nil {
		return err
	}
	if one.Table != memory.BansBucket && (own == "" || h.Names != own) {
		f.Omitted++
		return nil
	}
	stamp := share.At(h.Time.Time)
	if b, ok := memory.ReadBan(one.Key, one.Value); ok && one.Table == memory.BansBucket {
		at := b.Since
		if b.Revoked {
			at = b.Until
		}
		stamp = share.At(time.Unix(at, 0))
	}
	f.Rows = append(f.Rows, share.Row{Bucket: one.Table, Key: string(one.Key), Value: string(one.Value), Stamp: stamp})
	return nil
}

// Merge merges the rows of other hosts. self is the name of this host. Merge returns the rows for
// the filter and the other hosts' status. The rows are marked as partial, because other files may
// have been read earlier.
func Merge(self string, l share.Limits, files []*File, now time.Time) (rows []memory.Foreign, hosts []share.HostStatus, err error) {
	var fleet []*File
	// Bans of different hosts can replace each other. All other rows remain separate, so that
	// dropping a host does not affect the rows of other hosts. A friend's bans also remain separate.
	add := func(bans bool, some ...*File) error {
		list, status, err := merge(self, l, some, now)
		if rows = append(rows, ofTable(list, bans)...); bans {
			hosts = append(hosts, status...)
		}
		return err
	}
	for _, f := range files {
		switch {
		case f.Host == self:
			return nil, nil, fmt.Errorf("%s is the name of this host", f.Host)
		case f.Friend:
			err = errors.Join(err, add(true, f.onlyBans()))
		default:
			fleet = append(fleet, f)
		}
	}
	if len(fleet) > 0 {
		err = errors.Join(err, add(true, fleet...))
	}
	for _, f := range fleet {
		err = errors.Join(err, add(false, f))
	}
	if err != nil {
		return nil, nil, err
	}
	for i := range rows {
		rows[i].Partial = true
	}
	for i := range hosts {
		hosts[i].By = share.ByFile
		for _, f := range files {
			if f.Host == hosts[i].Name {
				hosts[i].Heard = f.Time
			}
		}
	}
	return rows, hosts, nil
}

// ofTable returns the rows that are bans. If bans is not set, it returns the other rows instead.
func ofTable(rows []memory.Foreign, bans bool) []memory.Foreign {
	return slices.DeleteFunc(rows, func(f memory.Foreign) bool { return (f.Bucket == memory.BansBucket) != bans })
}

func (f *File) onlyBans() *File {
	other := &File{Host: f.Host, Time: f.Time, Friend: true}
	for _, row := range f.Rows {
		if row.Bucket == memory.BansBucket {
			other.Rows = append(other.Rows, row)
		}
	}
	return other
}

// merge merges the rows of the hosts of files.
func merge(self string, l share.Limits, files []*File, now time.Time) ([]memory.Foreign, []share.HostStatus, error) {
	r := share.New(self, l)
	for _, f := range files {
		if err := r.Apply(f.Host, f.Rows, now); err != nil {
			return nil, nil, err
		}
	}
	return r.Changed(r.Len()+1, now), r.Hosts(), nil
}
