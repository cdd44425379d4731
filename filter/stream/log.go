package stream

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/maillog"
	"scanwatch/filter/serverlog"
)

// LogOptions are the options of ImportLog.
type LogOptions struct {
	Options
	Kind *serverlog.Kind
	Zone *time.Location // time zone of times without a UTC offset
	// Progress, if set, is called repeatedly with the number of bytes read and the total number.
	// Both numbers count compressed bytes. total is 0 if it is unknown.
	Progress func(read, total int64)
}

// A LogResult describes the import of logs.
type LogResult struct {
	serverlog.Counts     // its samples begin with the names of files and the numbers of lines
	Sessions, Known  int // Known sessions were recorded before
	// Undated reports whether the log contains no dates. Sessions are then dated by the
	// modification time of the first file.
	Undated        bool
	TooLong        int       // number of lines longer than 64 KiB
	Cut            []string  // names of compressed files that are incomplete
	Oldest, Newest time.Time // ends of the oldest and newest sessions
}

// progressLines is the number of lines between calls to LogOptions.Progress.
const progressLines = 50_000

// OpenLogs opens logs and returns them in chronological order. ImportLog reads and closes them. The
// name "-" represents standard input.
func OpenLogs(names []string, kind *serverlog.Kind, stdin io.Reader, now time.Time, zone *time.Location) (logs []*maillog.Log, err error) {
	if kind.Syslog {
		logs, err = maillog.Open(names, stdin, now, zone)
	} else {
		for _, name := range names {
			var l *maillog.Log
			if l, err = maillog.OpenRaw(name, stdin, now); err != nil {
				err = errors.Join(err, maillog.CloseAll(logs))
				break
			}
			logs = append(logs, l)
		}
	}
	slices.SortStableFunc(logs, func(a, b *maillog.Log) int { return int(max(min(a.First()-b.First(), 1), -1)) })
	return logs, err
}

// ImportLog records the sessions in the logs of another mail server. A session may continue in the
// next log. If the same logs are imported again, nothing changes. ImportLog returns the same errors
// as Import.
func ImportLog(logs []*maillog.Log, o LogOptions) (r LogResult, err error) {
	defer func() { err = errors.Join(err, maillog.CloseAll(logs)) }()
	if len(logs) == 0 {
		return r, errors.New("read log: no files")
	}
	var result Result
	err = record(o.Options, o.Kind.Name, &result, func(pipeline *filter.Pipeline) error {
		reader := serverlog.New(o.Kind, pipeline, serverlog.Options{Zone: o.Zone, Date: logs[0].ModTime()})
		for i := range logs {
			reader.File(filepath.Base(logs[i].Name))
			if err := r.read(logs, i, reader, &o); err != nil {
				return fmt.Errorf("read %s: %w", logs[i].Name, err)
			}
		}
		reader.Flush()
		samples := r.Samples
		r.Counts, r.Undated = reader.Counts(), reader.Undated()
		r.Samples = samples
		pipeline.Leave()
		return nil
	})
	r.Sessions, r.Known, r.Oldest, r.Newest = result.Sessions, result.Known, result.Oldest, result.Newest
	if err == nil && r.Sessions == 0 {
		err = r.foreign(logs, o.Kind)
	}
	return r, err
}

// foreign returns the error for logs that contain no sessions. Logs without sessions may come from
// a different mail server.
func (r *LogResult) foreign(logs []*maillog.Log, kind *serverlog.Kind) error {
	names := logs[0].Name
	if n := len(logs) - 1; n > 0 {
		names += fmt.Sprintf(" and %d more", n)
	}
	hint := ""
	if len(r.Samples) > 0 {
		hint = "; not understood: " + r.Samples[0]
	}
	return fmt.Errorf("read %s: no sessions of %s found in %d lines; use the kind of the server that wrote the log%s", names, kind.Name, r.Lines, hint)
}

// read reads a log.
func (r *LogResult) read(logs []*maillog.Log, i int, reader *serverlog.Reader, o *LogOptions) error {
	l := logs[i]
	for n := 1; ; n++ {
		line, stamped, err := next(l, o.Kind)
		switch {
		case errors.Is(err, io.EOF):
			if l.Cut() {
				r.Cut = append(r.Cut, l.Name)
			}
			return nil
		case errors.Is(err, maillog.ErrTooLong):
			r.TooLong++
			continue
		case err != nil:
			return fmt.Errorf("line %d: %w", n, err)
		}
		if !reader.Line(&line, stamped) && len(r.Samples) < serverlog.MaxSamples {
			r.Samples = append(r.Samples, fmt.Sprintf("%s:%d: %s", l.Name, n, serverlog.Sample(line.Raw)))
		}
		if n%progressLines == 0 && o.Progress != nil {
			var done, total int64
			for j, l := range logs {
				read, size := l.Read()
				if j < i {
					read = size
				}
				done, total = done+read, total+size
			}
			o.Progress(done, total)
		}
	}
}

func next(l *maillog.Log, kind *serverlog.Kind) (line maillog.Line, stamped bool, err error) {
	if kind.Syslog {
		return l.Next()
	}
	line.Raw, err = l.NextRaw()
	return line, false, err
}
