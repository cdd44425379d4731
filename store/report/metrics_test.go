package report

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

func TestMetrics(t *testing.T) {
	all := append([]Metric{
		{Name: "scanwatch_up", Help: "Whether\nit \\ runs.", Samples: []Sample{{nil, 1}}},
		{Name: "scanwatch_sessions_recorded_total", Help: "Taken.", Counter: true, Samples: []Sample{{[]string{"a", "quote \" slash \\ line\nend", "b", ""}, 1.5}, {nil, 1e15}}},
		{Name: "scanwatch_nothing", Help: "Not there."},
	}, refusing(t, 10, "a problem").Metrics()...)
	var b bytes.Buffer
	if err := Metrics(&b, all); err != nil {
		t.Fatal(err)
	}
	golden(t, "metrics", b.Bytes())
	line := regexp.MustCompile(`^(# (HELP|TYPE) [a-z_]+ [^\n]*|[a-z_]+(\{[a-z]+="([^"\\\n]|\\.)*"(,[a-z]+="([^"\\\n]|\\.)*")*\})? [0-9.]+)\n$`)
	types := make(map[string]bool)
	for l := range strings.Lines(b.String()) {
		if !line.MatchString(l) {
			t.Errorf("not of the format: %q", l)
		}
		if name, ok := strings.CutPrefix(l, "# TYPE "); ok {
			if types[name] {
				t.Errorf("twice: %s", l)
			}
			types[name] = true
			if strings.HasSuffix(name, "counter\n") != strings.Contains(name, "_total ") {
				t.Errorf("the name does not match the type: %s", l)
			}
		}
	}
}

// TestMetricsAreBounded checks that text from clients cannot create time series.
func TestMetricsAreBounded(t *testing.T) {
	samples := func(s *Summary) (n int) {
		for _, m := range s.Metrics() {
			n += len(m.Samples)
		}
		return n
	}
	empty := samples(&Summary{})
	s := &Summary{}
	for range 1000 {
		s.Evidence = append(s.Evidence, Name{Name: hostile, Sessions: 1})
		s.Organisations = append(s.Organisations, Name{Name: hostile, Sessions: 1})
		s.Helo = append(s.Helo, Name{Name: hostile, Sessions: 1})
	}
	s.Rules = make([]Rule, 3)
	if got := samples(s); got != empty+3*4 || empty > 10 {
		t.Errorf("%d samples, of an empty summary %d", got, empty)
	}
}
