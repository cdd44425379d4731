package mailimport

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/output"
	"scanwatch/filter/lookup/feed"
)

// The file "imported" in the state directory has one line for each imported period.
//
//	2026-10-01T00:00:01Z 2026-11-21T10:31:02Z mx
//
// The first two fields are the times of the first and last lines of a log. The third is
// the name of the server that logged them, escaped as in a URL.

// PeriodsFile is the name of the file that stores the imported periods.
const PeriodsFile = "imported"

// periodsMode is the mode of a new file.
const periodsMode = 0o640

// maxPeriods is the maximum number of periods in the file. Overlapping periods are merged into one.
const maxPeriods = 10_000

// A period is the time range covered by a log, in microseconds since 1970.
type period struct{ from, to int64 }

// periods maps each server to its periods, which are ordered and disjoint.
type periods map[string][]period

// covers reports whether a server's mail at the given time has been imported.
func (p periods) covers(server string, at int64) bool {
	for _, one := range p[server] {
		if one.from <= at && at <= one.to {
			return true
		}
	}
	return false
}

// add adds a period and merges overlapping periods.
func (p periods) add(server string, from, to int64) {
	list := append(p[server], period{from, to})
	slices.SortFunc(list, func(a, b period) int { return cmp.Compare(a.from, b.from) })
	merged := list[:1]
	for _, one := range list[1:] {
		if last := &merged[len(merged)-1]; one.from <= last.to {
			last.to = max(last.to, one.to)
		} else {
			merged = append(merged, one)
		}
	}
	p[server] = merged
}

// readPeriods reads the file. If the file does not exist, there are no periods.
func readPeriods(dir string) (periods, error) {
	p := periods{}
	name := filepath.Join(dir, PeriodsFile)
	f, err := feed.Open(name) // the directory may belong to another user
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for n := 1; in.Scan(); n++ {
		first, rest, _ := strings.Cut(in.Text(), " ")
		last, server, ok := strings.Cut(rest, " ")
		from, err1 := time.Parse(time.RFC3339Nano, first)
		to, err2 := time.Parse(time.RFC3339Nano, last)
		server, err3 := url.QueryUnescape(server)
		if !ok || err1 != nil || err2 != nil || err3 != nil || n > maxPeriods {
			return nil, fmt.Errorf("read %s: line %d is not a valid time range; use --again to ignore the file", name, n)
		}
		p.add(server, from.UnixMicro(), to.UnixMicro())
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return p, nil
}

// save adds the logs' periods and writes the file.
func (p periods) save(dir string, read fileHosts) error {
	if p == nil { // with --again, the file was not read
		var err error
		if p, err = readPeriods(dir); err != nil {
			p = periods{}
		}
	}
	for k, one := range read {
		p.add(k.server, one.from, one.to)
	}
	var lines []string
	for server, list := range p {
		for _, one := range list {
			lines = append(lines, fmt.Sprintf("%s %s %s\n", instant(one.from), instant(one.to), url.QueryEscape(server)))
		}
	}
	slices.Sort(lines)
	lines = lines[max(0, len(lines)-maxPeriods):]
	return output.Replace(filepath.Join(dir, PeriodsFile), periodsMode, func(w io.Writer) error {
		_, err := io.WriteString(w, strings.Join(lines, ""))
		return err
	})
}

func instant(micros int64) string { return time.UnixMicro(micros).UTC().Format(time.RFC3339Nano) }

// fileHosts contains the period of each server in each log file.
type fileHosts map[fileHost]period

type fileHost struct {
	file   int
	server string
}

// maxServers is the maximum number of entries in fileHosts. A server has one entry for each log
// that contains its lines.
const maxServers = 100_000

// add extends a server's period in a file.
func (h *fileHosts) add(file int, host []byte, at int64) {
	if *h == nil {
		*h = fileHosts{}
	}
	k := fileHost{file, string(host)}
	p, ok := (*h)[k]
	if !ok {
		if len(*h) >= maxServers {
			return
		}
		p = period{at, at}
	}
	p.from, p.to = min(p.from, at), max(p.to, at)
	(*h)[k] = p
}
