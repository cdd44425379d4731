package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"scanwatch/rules"
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

// Metrics returns the numbers of a summary of a day. All of them are gauges: the
// day moves. There is a sample for every kind of evidence and for each rule that
// the summary lists, and for nothing else that a stranger can choose.
func (s *Summary) Metrics() []Metric {
	const day = "scanwatch_last_day_"
	one := func(n int) []Sample { return []Sample{{nil, float64(n)}} }
	by := func(label string, names []string, values ...int) (all []Sample) {
		for i, name := range names {
			all = append(all, Sample{[]string{label, name}, float64(values[i])})
		}
		return all
	}
	classes := []string{"remote", "authenticated", "local"}
	recipients := Metric{Name: day + "recipients", Help: "Recipients of the last 24 hours, by what became of them."}
	for i, t := range []*Totals{&s.Remote, &s.Authenticated, &s.Local} {
		for _, r := range []struct {
			result string
			n      int
		}{{"accepted", t.RcptOK}, {"refused", t.RcptPermfail}, {"deferred", t.RcptTempfail}} {
			recipients.Samples = append(recipients.Samples, Sample{[]string{"class", classes[i], "result", r.result}, float64(r.n)})
		}
	}
	found := make(map[string]int)
	for _, e := range s.Evidence {
		found[e.Name] = e.Sessions
	}
	evidence := Metric{Name: day + "evidence_sessions", Help: "Sessions of the last 24 hours, by what was found of the host."}
	for _, t := range rules.Tokens {
		evidence.Samples = append(evidence.Samples, Sample{[]string{"evidence", t.Name}, float64(found[t.Name])})
	}
	decided := Metric{Name: day + "rule_sessions", Help: "Sessions of the last 24 hours in which a rule did something."}
	for _, r := range s.Rules {
		for _, d := range []struct {
			action string
			n      int
		}{{"done", r.Done}, {"observed", r.Observed}, {"banned", r.Bans}, {"spared", r.Spared}} {
			decided.Samples = append(decided.Samples, Sample{[]string{"rule", r.Rule, "action", d.action}, float64(d.n)})
		}
	}
	return []Metric{
		{Name: "scanwatch_problems", Help: "Problems that a report would begin with.", Samples: one(len(s.Problems))},
		{Name: day + "sessions", Help: "Sessions of the last 24 hours, by who had them.", Samples: by("class", classes, s.Remote.Sessions, s.Authenticated.Sessions, s.Local.Sessions)},
		{Name: day + "addresses", Help: "Addresses of remote hosts of the last 24 hours.", Samples: one(s.Addresses)},
		{Name: day + "found_sessions", Help: "Remote sessions of the last 24 hours with findings.", Samples: one(s.Remote.Found)},
		{Name: day + "refused_sessions", Help: "Remote sessions of the last 24 hours that a rule or a ban turned away.", Samples: one(s.Remote.Refused)},
		{Name: day + "doubtful_refusals", Help: "Hosts that were turned away in the last 24 hours, or would have been, whose mail may be good.", Samples: one(len(s.Doubts) + s.More["doubts"])},
		{Name: day + "messages", Help: "Messages accepted in the last 24 hours.", Samples: by("class", classes, s.Remote.Mails, s.Authenticated.Mails, s.Local.Mails)},
		recipients,
		{Name: day + "auth_failures", Help: "Attempts of remote hosts to log in that failed in the last 24 hours, or were not taken up.", Samples: one(s.Remote.AuthFail + s.Remote.AuthRefused)},
		evidence,
		decided,
	}
}
