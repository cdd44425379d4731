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

// maxDatabaseBytes is the maximum size of a database, which is read into memory. Most databases
// have 5 to 20 MB. All known databases are smaller than the limit.
const maxDatabaseBytes = 512 << 20

// An Origin is the record of a database for an address. Unknown fields are empty.
type Origin struct {
	ASN     uint32       // AS number
	Org     string       // organisation of the AS
	Country string       // two letters, ISO 3166-1
	Prefix  netip.Prefix // network of the address
}

// Origins looks up addresses in the operator's AS or country database. The file is a MaxMind DB.
// The file has the fields of MaxMind and DB-IP (ASN, ISP, Country, City) or of IPinfo.
//
// Origins reads the file into memory. If the file were mapped instead, truncating it would kill the
// process with SIGBUS, and smtpd would exit as well. Origins therefore needs as much memory as the
// file is large, and twice as much during a refresh.
//
// Lookup may be called concurrently, even during Refresh. Origins needs no lock, because each
// lookup keeps a reference to the database that it uses.
type Origins struct {
	path     string
	current  atomic.Pointer[originFile]
	failures atomic.Uint64

	mu   sync.Mutex  // serializes Refresh
	seen fs.FileInfo // file that was tried last; may be nil
	last string      // text of the last error
}

// OriginState describes the state of an AS or country database.
type OriginState struct {
	Path     string
	Loaded   bool      // false if there is no database; lookups then fail
	Type     string    // database type in the metadata
	Built    time.Time // build time in the metadata
	Bytes    int       // size in memory
	ASN      bool      // the database has AS numbers
	Country  bool      // the database has countries
	Failures uint64    // lookups that failed because the file is corrupt
}

// NewOrigins returns an Origins for the file at path. Until Refresh has been called, all lookups
// fail.
func NewOrigins(path string) *Origins { return &Origins{path: path} }

// Path returns the file's path.
func (o *Origins) Path() string { return o.path }

// Refresh reads the file if its size, modification time or inode has changed. changed reports
// whether a new database was read. After an error, the previous database remains in use. The same
// error is returned only once, unless the file changes.
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
		o.seen = nil // retry even if the file does not change
		return false, o.once(fmt.Errorf("database %s: %w%s", o.path, err, o.consequence()))
	}
	o.seen, o.last = info, ""
	if err != nil {
		return false, fmt.Errorf("database %s: %w%s", o.path, err, o.consequence())
	}
	o.current.Store(file)
	return true, nil
}

// Next returns a refreshed copy of o. The caller can check the new database before using it. If the
// file is unchanged or invalid, the copy uses the same database as o.
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
		return "; the previous database remains in use"
	}
	return "; conditions on networks and countries are unknown"
}

func (o *Origins) once(err error) error {
	if text := err.Error(); text != o.last {
		o.last = text
		return err
	}
	return nil
}

// Lookup returns the record for the network of addr. Lookup fails if there is no database, if the
// record is corrupt, or if addr is an IPv6 address and the database contains only IPv4. If the ASN
// of the Origin is 0, no AS announces the network, or the AS is unknown.
func (o *Origins) Lookup(addr netip.Addr) (origin Origin, ok bool) {
	file := o.current.Load()
	if file == nil || !addr.IsValid() {
		return Origin{}, false
	}
	addr = addr.Unmap()
	if addr.Is6() && file.reader.Metadata.IPVersion == 4 {
		return Origin{}, false
	}
	// The reader should tolerate corrupt files. If the reader panicked nevertheless, the filter
	// would exit.
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

// State returns the state of the database.
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

// An originFile is a database in memory. An originFile has no open file and need not be closed.
type originFile struct {
	reader *maxminddb.Reader
	bytes  int
	schema originSchema
	has    originFields
}

// originFields are the fields that a database has.
type originFields struct{ asn, country bool }

// An originSchema decodes a record in the format of a vendor.
type originSchema func(maxminddb.Result, originFields, *Origin) error

// originSchemas are tried in this order. The type in the metadata is not used, because a local
// database can have any type. The geoip2 reader accepts only a fixed list of types that does not
// contain IPinfo's. Origins therefore uses the maxminddb reader.
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
		var place struct { // only the code is decoded; geoip2.Country would also decode names in eight languages
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
		ASN         string `maxminddb:"asn"`     // for example AS64496
		Name        string `maxminddb:"name"`    // AS name in an AS database
		ASName      string `maxminddb:"as_name"` // AS name in other databases
		Country     string `maxminddb:"country"` // country code, or the country's name if CountryCode is set
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
	origin := Origin{Prefix: r.Prefix()}
	if err := f.schema(r, f.has, &origin); err != nil {
		return Origin{}, err
	}
	return origin, nil
}

var errChanging = errors.New("changed while it was read; the filter will read it again")

// readOrigins reads the file at path, and returns the file's FileInfo.
func readOrigins(path string) (*originFile, fs.FileInfo, error) {
	in, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // do not block on a FIFO
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

// openOrigins opens a database in memory.
func openOrigins(content []byte) (file *originFile, err error) {
	defer func() { // the reader may panic; see Lookup
		if v := recover(); v != nil {
			file, err = nil, fmt.Errorf("corrupt: %v", v)
		}
	}()
	reader, err := maxminddb.OpenBytes(content)
	if err != nil {
		return nil, fmt.Errorf("not a complete database in MaxMind's format: %w", err)
	}
	var tried []error
	for _, schema := range originSchemas {
		has, err := probe(reader, schema)
		if has.asn || has.country {
			return &originFile{reader: reader, bytes: len(content), schema: schema, has: has}, nil
		}
		tried = append(tried, err)
	}
	const why = "type %q: no AS numbers or countries in known fields"
	err = fmt.Errorf(why, reader.Metadata.DatabaseType)
	return nil, errors.Join(append([]error{err}, tried...)...)
}

// CheckOrigins returns the state of a database with the given content, or an error if Origins
// cannot use it.
func CheckOrigins(content []byte) (OriginState, error) {
	file, err := openOrigins(content)
	if err != nil {
		return OriginState{}, err
	}
	o := Origins{}
	o.current.Store(file)
	return o.State(), nil
}

// probe reads the first records to find out which fields the database has.
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
