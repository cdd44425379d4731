package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A Metric is one family of numbers for Prometheus.
type Metric struct {
	Name    string // a counter's ends in _total
	Help    string
	Counter bool // it only grows, as long as the filter runs; else a gauge
	Samples []Sample
}

// A Sample is one number. Labels are pairs of a name and a value; values are
// text as it is shown to people.
type Sample struct {
	Labels []string
	Value  float64
}

// Metrics writes metrics in the text format of Prometheus, version 0.0.4, which
// the textfile collector of its node exporter reads. A metric without samples is
// left out.
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

// Metrics returns what only a report can tell of the last day. All of it are
// gauges: the day moves. Labels have the rules that the summary lists, and nothing
// that a stranger can choose.
func (s *Summary) Metrics() []Metric {
	const day = "scanwatch_last_day_"
	one := func(n int) []Sample { return []Sample{{nil, float64(n)}} }
	decided := Metric{Name: day + "rule_sessions", Help: "Sessions of the last 24 hours in which a rule did something, of the busiest rules."}
	for _, r := range s.Rules {
		for _, d := range []struct {
			action string
			n      int
		}{{"done", r.Done}, {"observed", r.Observed}, {"banned", r.Bans}, {"spared", r.Spared}} {
			decided.Samples = append(decided.Samples, Sample{[]string{"rule", r.Rule, "action", d.action}, float64(d.n)})
		}
	}
	return []Metric{
		{Name: "scanwatch_problems", Help: "Problems that a report about the last 24 hours would begin with.", Samples: one(len(s.Problems))},
		{Name: day + "addresses", Help: "Addresses of remote hosts that came in the last 24 hours.", Samples: one(s.Addresses)},
		{Name: day + "doubtful_refusals", Help: "Hosts that were turned away in the last 24 hours, or would have been, whose mail may be good.", Samples: one(len(s.Doubts) + s.More["doubts"])},
		decided,
	}
}
