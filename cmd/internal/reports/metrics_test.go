package reports

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/rules"
	"scanwatch/store/report"
)

// TestTodayMetrics checks that the metrics include the current day's counters.
func TestTodayMetrics(t *testing.T) {
	day := func(at time.Time, sessions uint64) memory.Day {
		return memory.Day{Day: at.Truncate(24 * time.Hour), Counters: map[string]uint64{
			memory.DaySessions.String(): sessions, memory.DayLocal.String(): 1, memory.DayAuthenticated.String(): 2, memory.DaySummed.String(): 3,
			memory.DayMails.String(): 4, memory.DayRcptPermfail.String(): 5, memory.DayEvidence(rules.Harvest).String(): 6}}
	}
	var out bytes.Buffer
	all := todayMetrics([]memory.Day{day(now.AddDate(0, 0, -1), 99), day(now, 10)}, now)
	if err := report.Metrics(&out, all); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`scanwatch_sessions_total{class="remote"} 7`, `scanwatch_sessions_total{class="authenticated"} 2`, `scanwatch_messages_total 4`,
		`scanwatch_recipients_total{result="refused"} 5`, `scanwatch_recipients_total{result="accepted"} 0`,
		`scanwatch_evidence_sessions_total{evidence="harvest"} 6`, `scanwatch_evidence_sessions_total{evidence="flood"} 0`, `scanwatch_summed_sessions_total 3`,
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("%s is missing in\n%s", want, &out)
		}
	}
}
