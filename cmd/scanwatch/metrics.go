package main

// Numbers for Prometheus.

import (
	"errors"
	"fmt"
	"io"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

const (
	// metricRules is how many rules have numbers of their own, the busiest of the
	// day: labels must not grow without end.
	metricRules = 50
	// metricsMode lets the exporter, which is another user, read the file. It names
	// nobody.
	metricsMode = 0o644
)

// metrics writes numbers about the filter, the state directory and the last day
// to the standard output or a file.
func (e *env) metrics(file string) error {
	s, r, err := e.summary(period{since: e.now().Add(-24 * time.Hour)}, metricRules, true)
	if err != nil {
		return err
	}
	days, err := e.days()
	if err != nil {
		return fmt.Errorf("read what was counted by the day: %w", err)
	}
	all := append(e.filterMetrics(), e.todayMetrics(days)...)
	all = append(all, s.Metrics()...)
	write := func(w io.Writer) error { return store_report.Metrics(w, all) }
	if file == "" {
		err = write(e.out)
	} else {
		err = replaceFile(file, metricsMode, write)
	}
	return errors.Join(err, unread(r))
}

// todayMetrics are what was counted today, in UTC, whether it is kept or not. They
// are counters that begin anew each day, and not when the filter does.
func (e *env) todayMetrics(days []memory.Day) []store_report.Metric {
	var today memory.Day
	for _, d := range days {
		if d.Day.Equal(e.now().UTC().Truncate(24 * time.Hour)) {
			today = d
		}
	}
	counter := func(name, help string, samples ...store_report.Sample) store_report.Metric {
		return store_report.Metric{Name: "scanwatch_" + name + "_total", Help: help + " since midnight (UTC).", Counter: true, Samples: samples}
	}
	count := func(f memory.Figure, labels ...string) store_report.Sample {
		return store_report.Sample{Labels: labels, Value: float64(today.Of(f))}
	}
	all, local, authenticated := today.Of(memory.DaySessions), today.Of(memory.DayLocal), today.Of(memory.DayAuthenticated)
	remote := store_report.Sample{Labels: []string{"class", "remote"}, Value: float64(all - min(all, local+authenticated))}
	var evidence []store_report.Sample
	for _, t := range rules.Tokens {
		evidence = append(evidence, count(memory.DayEvidence(t.Evidence), "evidence", t.Name))
	}
	return []store_report.Metric{
		counter("sessions", "Sessions that ended", remote, count(memory.DayAuthenticated, "class", "authenticated"), count(memory.DayLocal, "class", "local")),
		counter("found_sessions", "Sessions of strangers with evidence", count(memory.DayFound)),
		counter("refused_sessions", "Sessions that were turned away, or some of whose commands were,", count(memory.DayRefused)),
		counter("evidence_sessions", "Sessions by evidence", evidence...),
		counter("messages", "Messages that were accepted", count(memory.DayMails)),
		counter("recipients", "Recipients by what became of them", count(memory.DayRcptOK, "result", "accepted"),
			count(memory.DayRcptPermfail, "result", "refused"), count(memory.DayRcptTempfail, "result", "deferred")),
		counter("auth_failures", "Attempts to log in that failed", count(memory.DayAuthFail)),
		counter("unrecorded_sessions", "Sessions that were only counted, because of a flood,", store_report.Sample{Value: float64(today.Lost())}),
	}
}

// filterMetrics are the numbers of the running filter and of its files. Without a
// filter there are fewer.
func (e *env) filterMetrics() []store_report.Metric {
	one := func(v float64) []store_report.Sample { return []store_report.Sample{{Value: v}} }
	with := func(label, name string, v float64) store_report.Sample {
		return store_report.Sample{Labels: []string{label, name}, Value: v}
	}
	gauge := func(name, help string, samples ...store_report.Sample) store_report.Metric {
		return store_report.Metric{Name: "scanwatch_" + name, Help: help, Samples: samples}
	}
	counter := func(name, help string, samples ...store_report.Sample) store_report.Metric {
		return store_report.Metric{Name: "scanwatch_" + name + "_total", Help: help, Counter: true, Samples: samples}
	}
	seconds := func(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

	up, budget := 0.0, e.limits().Budget
	var running []store_report.Metric
	if client, err := control.Dial(e.dir); err == nil {
		st, err := client.Status()
		client.Close()
		if err == nil {
			up, budget = 1, st.Store.Budget
			dropped := counter("sessions_dropped", "Sessions that were not recorded since the filter began, by reason.")
			for i, n := range st.Store.Dropped {
				dropped.Samples = append(dropped.Samples, with("reason", store.Reasons[i], float64(n)))
			}
			rows := gauge("memory_rows", "Rows of the tables of what is remembered.")
			most := gauge("memory_rows_limit", "Rows that a table of what is remembered may have.")
			forgot := counter("memory_forgotten", "Rows that were forgotten for want of room since the filter began.")
			for _, m := range st.Memory {
				rows.Samples = append(rows.Samples, with("table", m.Table, float64(m.Rows)))
				most.Samples = append(most.Samples, with("table", m.Table, float64(m.Most)))
				forgot.Samples = append(forgot.Samples, with("table", m.Table, float64(m.Forgot)))
			}
			running = []store_report.Metric{
				gauge("info", "Version of the running filter, and the mode of its policy.", store_report.Sample{Labels: []string{"version", st.Program, "mode", st.Config.Mode}, Value: 1}),
				gauge("start_time_seconds", "When the filter began, in seconds since 1970.", one(seconds(st.Started))...),
				counter("sessions_recorded", "Sessions that were taken since the filter began.", one(float64(st.Store.Added))...),
				counter("sessions_written", "Sessions that were written to disk since the filter began.", one(float64(st.Store.Committed))...),
				dropped,
				gauge("buffer_bytes", "Memory with sessions that wait to be written.", one(float64(st.Store.Buffered))...),
				gauge("buffer_limit_bytes", "Memory that sessions may use that wait to be written.", one(float64(st.Store.Buffer))...),
				rows, most, forgot,
			}
			if ev := st.Events; ev != nil {
				running = append(running, counter("events_sent", "Events that were written for other programs since the filter began.", one(float64(ev.Sent))...),
					counter("events_left_out", "Events that were not written since the filter began.", one(float64(ev.LeftOut.Rate+ev.LeftOut.Full+ev.LeftOut.Gone))...))
			}
		}
	}
	all := append([]store_report.Metric{gauge("up", "Whether the filter runs and answers.", one(up)...)}, running...)
	segments, err := store.Segments(e.dir)
	if err != nil {
		return all
	}
	var size, damaged float64
	for _, s := range segments {
		size += float64(s.Size)
		if s.Damaged {
			damaged++
		}
	}
	all = append(all, gauge("segments", "Files of recorded sessions.", one(float64(len(segments)))...),
		gauge("segments_damaged", "Files of recorded sessions that were set aside as damaged.", one(damaged)...),
		gauge("disk_bytes", "Size of all files of recorded sessions.", one(size)...),
		gauge("disk_budget_bytes", "What the state directory may use of the disk.", one(float64(budget))...))
	if len(segments) > 0 {
		all = append(all, gauge("oldest_day_timestamp_seconds", "Begin of the oldest day (UTC) of which there are sessions, in seconds since 1970.", one(seconds(segments[0].Day))...))
	}
	return all
}
