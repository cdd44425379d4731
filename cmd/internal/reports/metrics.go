package reports

import (
	"fmt"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/selector"
	"scanwatch/cmd/internal/statedir"
	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/store/report"
)

// metricRules is the maximum number of rules that have their own sample, because metrics should not
// have too many labels. The rules with the most sessions on the current day are kept.
const metricRules = 50

// Metrics returns metrics for the filter, the state directory and the current day. stale describes
// downloads without a recent success. incomplete is set if files could not be read.
func Metrics(dir *statedir.Dir, zone *time.Location, stale []string) (all []report.Metric, incomplete, err error) {
	s := Source{Dir: dir, Selector: &selector.Selector{Since: dir.Now().Add(-24 * time.Hour)}, Zone: zone, Stale: stale}
	summary, incomplete, err := s.Summary(metricRules, true)
	if err != nil {
		return nil, nil, err
	}
	days, err := dir.Days()
	if err != nil {
		return nil, nil, fmt.Errorf("read daily counters: %w", err)
	}
	running, budget := filterMetrics(dir)
	all = append(running, fileMetrics(dir, budget)...)
	all = append(all, todayMetrics(days, dir.Now())...)
	return append(all, summary.Metrics()...), incomplete, nil
}

func gauge(name, help string, samples ...report.Sample) report.Metric {
	return report.Metric{Name: "scanwatch_" + name, Help: help, Samples: samples}
}

func counter(name, help string, samples ...report.Sample) report.Metric {
	return report.Metric{Name: "scanwatch_" + name + "_total", Help: help, Counter: true, Samples: samples}
}

func one(v float64) report.Sample { return report.Sample{Value: v} }

func with(label, name string, v float64) report.Sample {
	return report.Sample{Labels: []string{label, name}, Value: v}
}

func seconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

// todayMetrics returns the counters for the current UTC day. The counters start at 0 each day, and
// include sessions that were not recorded.
func todayMetrics(days []memory.Day, now time.Time) []report.Metric {
	var today memory.Day
	for _, d := range days {
		if d.Day.Equal(now.UTC().Truncate(24 * time.Hour)) {
			today = d
		}
	}
	daily := func(name, help string, samples ...report.Sample) report.Metric {
		return counter(name, help+" since midnight UTC.", samples...)
	}
	count := func(f memory.DayCounter, labels ...string) report.Sample {
		return report.Sample{Labels: labels, Value: float64(today.Of(f))}
	}
	all, local, authenticated := today.Of(memory.DaySessions), today.Of(memory.DayLocal), today.Of(memory.DayAuthenticated)
	remote := with("class", "remote", float64(all-min(all, local+authenticated)))
	var evidence []report.Sample
	for _, t := range rules.Tokens {
		evidence = append(evidence, count(memory.DayEvidence(t.Evidence), "evidence", t.Name))
	}
	return []report.Metric{
		daily("sessions", "Sessions that ended", remote, count(memory.DayAuthenticated, "class", "authenticated"), count(memory.DayLocal, "class", "local")),
		daily("found_sessions", "Sessions of unknown clients with evidence", count(memory.DayFound)),
		daily("refused_sessions", "Sessions with a rejected command or a disconnect", count(memory.DayRefused)),
		daily("evidence_sessions", "Sessions by evidence", evidence...),
		daily("messages", "Accepted messages", count(memory.DayMails)),
		daily("recipients", "Recipients by result", count(memory.DayRcptOK, "result", "accepted"),
			count(memory.DayRcptPermfail, "result", "refused"), count(memory.DayRcptTempfail, "result", "deferred")),
		daily("auth_failures", "Failed logins", count(memory.DayAuthFail)),
		daily("summed_sessions", "Sessions of floods, which were added to aggregates", count(memory.DaySummed)),
	}
}

// filterMetrics returns metrics for the filter and the disk budget. If the filter is not
// running, some metrics are missing.
func filterMetrics(dir *statedir.Dir) (all []report.Metric, budget int64) {
	const upHelp = "Whether the filter is running and answering."
	status, err := askStatus(dir)
	if err != nil {
		return []report.Metric{gauge("up", upHelp, one(0))}, dir.Limits().Budget
	}
	dropped := counter("sessions_dropped", "Sessions that were not recorded since the filter started, by reason.")
	for i, n := range status.Store.Dropped {
		dropped.Samples = append(dropped.Samples, with("reason", store.Reasons[i], float64(n)))
	}
	rows := gauge("memory_rows", "Rows in a table of the state.")
	limit := gauge("memory_rows_limit", "Maximum number of rows in a table of the state.")
	evicted := counter("memory_evicted", "Rows that were evicted since the filter started because the table was full.")
	for _, m := range status.Memory {
		rows.Samples = append(rows.Samples, with("table", m.Table, float64(m.Rows)))
		limit.Samples = append(limit.Samples, with("table", m.Table, float64(m.Limit)))
		evicted.Samples = append(evicted.Samples, with("table", m.Table, float64(m.Evicted)))
	}
	st := &status.Store
	all = []report.Metric{
		gauge("up", upHelp, one(1)),
		gauge("info", "Version of the running filter and mode of its policy.", report.Sample{Labels: []string{"version", status.Program, "mode", status.Config.Mode}, Value: 1}),
		gauge("start_time_seconds", "Start of the filter in seconds since 1970.", one(seconds(status.Started.Time))),
		counter("sessions_recorded", "Sessions that were recorded since the filter started.", one(float64(st.Added))),
		counter("sessions_written", "Sessions that were written to disk since the filter started.", one(float64(st.Committed))),
		dropped,
		gauge("buffer_bytes", "Memory used by sessions that have not yet been written.", one(float64(st.Buffered))),
		gauge("buffer_limit_bytes", "Maximum memory for sessions that have not yet been written.", one(float64(st.Buffer))),
		rows, limit, evicted,
	}
	return all, st.Budget
}

// askStatus returns the running filter's status.
func askStatus(dir *statedir.Dir) (s control.Status, err error) {
	client, err := control.Dial(dir.Path)
	if err != nil {
		return s, err
	}
	defer client.Close()
	return client.Status()
}

// fileMetrics returns metrics for the session files.
func fileMetrics(dir *statedir.Dir, budget int64) []report.Metric {
	segments, err := store.Segments(dir.Path)
	if err != nil {
		return nil
	}
	var size, damaged float64
	for _, s := range segments {
		size += float64(s.Size)
		if s.Quarantined {
			damaged++
		}
	}
	all := []report.Metric{
		gauge("segments", "Files of recorded sessions.", one(float64(len(segments)))),
		gauge("segments_damaged", "Files of recorded sessions that are quarantined as corrupt.", one(damaged)),
		gauge("disk_bytes", "Size of all files of recorded sessions.", one(size)),
		gauge("disk_budget_bytes", "Disk space that the state directory may use.", one(float64(budget))),
	}
	if len(segments) > 0 {
		all = append(all, gauge("oldest_day_timestamp_seconds", "Start of the oldest recorded day (UTC) in seconds since 1970.", one(seconds(segments[0].Day))))
	}
	return all
}
