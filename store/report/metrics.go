package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A Metric is a Prometheus metric family.
type Metric struct {
	Name    string // ends in _total for a counter
	Help    string
	Counter bool // a counter since the filter started, not a gauge
	Samples []Sample
}

// A Sample is a value with its labels. Labels holds alternating names and
// printable values.
type Sample struct {
	Labels []string
	Value  float64
}

// Metrics writes metrics in Prometheus text format, version 0.0.4, which the node
// exporter's textfile collector reads. Metrics without samples are omitted.
func Metrics(w io.Writer, all []Metric) error {
	var b strings.Builder
	help := strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	value := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	for i := range all {
		m := &all[i]
		if len(m.Samples) == 0 {
			continue
		}
		kind := "gauge"
		if m.Counter {
			kind = "counter"
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", m.Name, help.Replace(m.Help), m.Name, kind)
		for _, s := range m.Samples {
			b.WriteString(m.Name)
			for k := 0; k+1 < len(s.Labels); k += 2 {
				open := ","
				if k == 0 {
					open = "{"
				}
				fmt.Fprintf(&b, `%s%s="%s"`, open, s.Labels[k], value.Replace(s.Labels[k+1]))
			}
			if len(s.Labels) > 0 {
				b.WriteByte('}')
			}
			b.WriteByte(' ')
			b.WriteString(strconv.FormatFloat(s.Value, 'f', -1, 64))
			b.WriteByte('\n')
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Metrics returns the metrics of a report on the last day. All metrics are gauges, because a value
// can decrease when the period moves. Labels may contain rule names, but never clients' text.
func (s *Summary) Metrics() []Metric {
	const day = "scanwatch_last_day_"
	one := func(n int) []Sample { return []Sample{{nil, float64(n)}} }
	decided := Metric{Name: day + "rule_sessions", Help: "Sessions in the last 24 hours in which a rule had an effect, for the most frequent rules."}
	for _, r := range s.Rules {
		for _, d := range []struct {
			action string
			n      int
		}{{"enforced", r.Enforced}, {"observed", r.Observed}, {"banned", r.Bans}, {"exempt", r.Exempt}} {
			decided.Samples = append(decided.Samples, Sample{[]string{"rule", r.Rule, "action", d.action}, float64(d.n)})
		}
	}
	return []Metric{
		{Name: "scanwatch_problems", Help: "Problems in a report about the last 24 hours.", Samples: one(len(s.Problems))},
		{Name: day + "addresses", Help: "Addresses of other hosts in the last 24 hours.", Samples: one(s.Addresses)},
		{Name: day + "possible_false_positives", Help: "Hosts in the last 24 hours that may be false positives, by whether a rejection was enforced.", Samples: []Sample{
			{[]string{"action", "enforced"}, float64(s.SuspectHosts.Refused)}, {[]string{"action", "observed"}, float64(s.SuspectHosts.Observed)}}},
		decided,
	}
}
