package lookup

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/oschwald/geoip2-golang/v2"
	"github.com/oschwald/maxminddb-golang/v2"
)

// maxDatabaseBytes is the largest database that is read. It is held in memory
// whole; the usual ones take 5 to 20 MB, the largest on the market stay below.
const maxDatabaseBytes = 512 << 20

// An Origin is what a database knows of the network of an address. Fields are
// empty where it does not know.
type Origin struct {
	ASN     uint32       // AS number
	Org     string       // the organisation of that number
	Country string       // two letters, ISO 3166-1
	Prefix  netip.Prefix // the network all this holds for
}

// Origins answers from which network, and which country, an address is. It
// reads a file in MaxMind's DB format that the operator supplies, with the
// fields of MaxMind and DB-IP (ASN, ISP, Country, City) or those of IPinfo.
//
// The file is read into memory and not mapped: a mapped file that somebody
// truncates kills the process that looks at it with SIGBUS, and this process
// takes the mail server with it. The price is the size of the file, twice for
// the moment it is exchanged. It also makes the exchange safe without locks: who
// still looks up in the old one keeps it alive.
//
// Lookups may go on during Refresh, from any number of goroutines.
type Origins struct {
	path     string
	current  atomic.Pointer[originFile]
	failures atomic.Uint64

	mu   sync.Mutex  // held by Refresh
	seen fs.FileInfo // of the file read last, or tried; nil if there was none
	last string      // text of the last error about it
}

// An OriginState tells what Origins answers from.
type OriginState struct {
	Path     string
	Loaded   bool      // false: nothing is evaluated
	Type     string    // the name the database gives itself
	Built    time.Time // when its maker built it
	Bytes    int       // of memory
	ASN      bool      // it holds AS numbers
	Country  bool      // it holds countries
	Failures uint64    // lookups that failed on broken parts of the file
}

// NewOrigins returns Origins for the file at path, which Refresh is to read
// first. Until then nothing is evaluated.
func NewOrigins(path string) *Origins { return &Origins{path: path} }

// Path is the file that o reads.
func (o *Origins) Path() string { return o.path }

// Refresh reads the file if it is another one than before, by size, time and
// inode, and tells whether it is in use now. On an error what was in use stays
// in use; without any, nothing is evaluated. The same error about the same file
// is returned once.
func (o *Origins) Refresh() (changed bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()

	info, err := os.Stat(o.path)
	if err != nil {
		o.seen = nil
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("database %s does not exist%s", o.path, o.consequence())
		} else {
			err = fmt.Errorf("database: %w%s", err, o.consequence())
		}
		return false, o.once(err)
	}
	if o.seen != nil && sameFile(o.seen, info) {
		return false, nil
	}
	file, info, err := readOrigins(o.path)
	if errors.Is(err, errChanging) {
		o.seen = nil // try again, whatever it looks like then
		return false, o.once(fmt.Errorf("database %s: %w%s", o.path, err, o.consequence()))
	}
	o.seen, o.last = info, ""
	if err != nil {
		return false, fmt.Errorf("database %s: %w%s", o.path, err, o.consequence())
	}
	o.current.Store(file)
	return true, nil
}

// Next returns Origins for what the file is by now, for those who want to look
// before they use it; o stays as it is. Without a new file, or with one that cannot
// be used, they answer as o does.
func (o *Origins) Next() (*Origins, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	next := &Origins{path: o.path, seen: o.seen, last: o.last}
	next.current.Store(o.current.Load())
	_, err := next.Refresh()
	return next, err
}

func (o *Origins) consequence() string {
	if o.current.Load() != nil {
		return "; the one read before stays in use"
	}
	return "; networks and countries are not evaluated"
}

func (o *Origins) once(err error) error {
	if text := err.Error(); text != o.last {
		o.last = text
		return err
	}
	return nil
}

// Lookup finds the network of addr. It returns false if that could not be
// evaluated: no database, a broken part of it, or an IPv6 address in one for
// IPv4 only. An Origin without an ASN and true is an answer: the network is not
// announced, or not known.
func (o *Origins) Lookup(addr netip.Addr) (origin Origin, ok bool) {
	file := o.current.Load()
	if file == nil || !addr.IsValid() {
		return Origin{}, false
	}
	addr = addr.Unmap()
	if addr.Is6() && file.reader.Metadata.IPVersion == 4 {
		return Origin{}, false
	}
	// The reader checks what it reads, and still: no file may end the process.
	defer func() {
		if recover() != nil {
			o.failures.Add(1)
			origin, ok = Origin{}, false
		}
	}()
	origin, err := file.lookup(addr)
	if err != nil {
		o.failures.Add(1)
		return Origin{}, false
	}
	return origin, true
}

// State tells what lookups are answered from.
func (o *Origins) State() OriginState {
	state := OriginState{Path: o.path, Failures: o.failures.Load()}
	if file := o.current.Load(); file != nil {
		state.Loaded = true
		state.Type = file.reader.Metadata.DatabaseType
		state.Built = file.reader.Metadata.BuildTime().UTC()
		state.Bytes = file.bytes
		state.ASN, state.Country = file.has.asn, file.has.country
	}
	return state
}

// An originFile is one database in memory. Its reader is never closed: memory
// is all it holds.
type originFile struct {
	reader *maxminddb.Reader
	bytes  int
	schema originSchema
	has    originFields
	// decoded are records that were asked for lately, wherever their place in the
	// file says: to decode one takes longer than to find it.
	decoded [1024]atomic.Pointer[decodedOrigin]
}

// A decodedOrigin is what stands at one place of a file. Many networks share it.
type decodedOrigin struct {
	at     uintptr
	origin Origin // without the network
}

// originFields tells which fields of an Origin there are.
type originFields struct{ asn, country bool }

// An originSchema reads a record in the words of one maker. Only fields that
// are there are read.
type originSchema func(maxminddb.Result, originFields, *Origin) error

// originSchemas are tried in this order on a new file. What a database holds is
// found out by looking, since the names of their types are many: geoip2's own
// reader knows a fixed list of them, without IPinfo and without the site's own,
// which is why its records are decoded by the reader below it.
var originSchemas = []originSchema{maxMindSchema, ipinfoSchema}

func maxMindSchema(r maxminddb.Result, has originFields, origin *Origin) error {
	if has.asn {
		var as geoip2.ASN
		if err := r.Decode(&as); err != nil {
			return err
		}
		if as.AutonomousSystemNumber > math.MaxUint32 {
			return fmt.Errorf("AS number %d is too large", as.AutonomousSystemNumber)
		}
		origin.ASN, origin.Org = uint32(as.AutonomousSystemNumber), as.AutonomousSystemOrganization
	}
	if has.country {
		var place struct { // geoip2.Country decodes its name in eight languages
			Country struct {
				ISOCode string `maxminddb:"iso_code"`
			} `maxminddb:"country"`
		}
		if err := r.Decode(&place); err != nil {
			return err
		}
		origin.Country = place.Country.ISOCode
	}
	return nil
}

func ipinfoSchema(r maxminddb.Result, has originFields, origin *Origin) error {
	var record struct {
		ASN         string `maxminddb:"asn"`     // AS64496
		Name        string `maxminddb:"name"`    // ASN database
		ASName      string `maxminddb:"as_name"` // the others
		Country     string `maxminddb:"country"` // code, or the name where there is a code besides
		CountryCode string `maxminddb:"country_code"`
	}
	if err := r.Decode(&record); err != nil {
		return err
	}
	if has.asn && record.ASN != "" {
		number, err := strconv.ParseUint(strings.TrimPrefix(record.ASN, "AS"), 10, 32)
		if err != nil {
			return fmt.Errorf("AS number %q: %w", record.ASN, err)
		}
		origin.ASN, origin.Org = uint32(number), record.ASName
		if origin.Org == "" {
			origin.Org = record.Name
		}
	}
	if has.country {
		origin.Country = record.CountryCode
		if origin.Country == "" && len(record.Country) == 2 {
			origin.Country = record.Country
		}
	}
	return nil
}

func (f *originFile) lookup(addr netip.Addr) (Origin, error) {
	r := f.reader.Lookup(addr)
	if err := r.Err(); err != nil || !r.Found() {
		return Origin{}, err
	}
	at := r.Offset()
	known := &f.decoded[uint64(at)*0x9e3779b97f4a7c15>>54] // 10 bits; 2^64 divided by the golden ratio spreads well
	d := known.Load()
	if d == nil || d.at != at {
		d = &decodedOrigin{at: at}
		if err := f.schema(r, f.has, &d.origin); err != nil {
			return Origin{}, err
		}
		known.Store(d)
	}
	origin := d.origin
	origin.Prefix = r.Prefix()
	return origin, nil
}

var errChanging = errors.New("it changed while it was read, it will be tried again")

// readOrigins reads the file at path and tells what file it was.
func readOrigins(path string) (*originFile, fs.FileInfo, error) {
	in, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO must not make us wait
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, info, errors.New("not a regular file")
	}
	if info.Size() > maxDatabaseBytes {
		return nil, info, fmt.Errorf("larger than %d bytes", maxDatabaseBytes)
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(in, content); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) && info.Size() > 0 {
			err = errChanging
		}
		return nil, info, err
	}
	if after, err := in.Stat(); err != nil || !sameFile(info, after) {
		return nil, info, errors.Join(err, errChanging)
	}
	file, err := openOrigins(content)
	return file, info, err
}

// openOrigins takes a database in memory into use.
func openOrigins(content []byte) (file *originFile, err error) {
	defer func() { // as in Lookup
		if v := recover(); v != nil {
			file, err = nil, fmt.Errorf("broken: %v", v)
		}
	}()
	reader, err := maxminddb.OpenBytes(content)
	if err != nil {
		return nil, fmt.Errorf("not a database in MaxMind's format, or only part of one: %w", err)
	}
	var tried []error
	for _, schema := range originSchemas {
		has, err := probe(reader, schema)
		if has.asn || has.country {
			return &originFile{reader: reader, bytes: len(content), schema: schema, has: has}, nil
		}
		tried = append(tried, err)
	}
	const why = "type %q: holds neither AS numbers nor countries in fields known here"
	err = fmt.Errorf(why, reader.Metadata.DatabaseType)
	return nil, errors.Join(append([]error{err}, tried...)...)
}

// probe looks at the first records to see which fields they have.
func probe(reader *maxminddb.Reader, schema originSchema) (has originFields, err error) {
	const enough = 1000
	for _, want := range []originFields{{asn: true}, {country: true}} {
		looked := 0
		for r := range reader.Networks() {
			var origin Origin
			if err = r.Err(); err == nil {
				err = schema(r, want, &origin)
			}
			has.asn = has.asn || origin.ASN != 0
			has.country = has.country || origin.Country != ""
			looked++
			if err != nil || looked == enough || want.asn && has.asn || want.country && has.country {
				break
			}
		}
	}
	return has, err
}

func sameFile(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
