//go:build linux

package count

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"scanwatch/tests/internal/cli"
)

// printed is a report that scanwatch has printed.
type printed struct {
	Remote, Authenticated, Local     totals
	Addresses, Aggregated, Unwritten int
	AddressesError                   int                    `json:"addresses_error"`
	NotKept                          struct{ Sessions int } `json:"not_kept"`
	NotListed                        map[string]int         `json:"not_listed"`
	Timeline                         []struct{ Sessions, Found int }
	Evidence, Organisations, Helo    []named
	Sources, Auth                    []sourceCount
	Networks                         []network
	Harvest, Relay                   []attempt
	Rules                            []rule
	Problems                         []string
	More                             map[string]int
}

type named struct {
	Name     string
	Sessions int
}

// report returns the printed report on a period's sessions.
func report(t *testing.T, dir string, period []string) *summary {
	t.Helper()
	var p printed
	cli.Decode(t, cli.Run(t, dir, append([]string{"report", "--json", "--limit", "10000000"}, period...)...), &p)
	if len(p.More) > 0 {
		t.Errorf("%v: the lists are not complete: %v", period, p.More)
	}
	for _, problem := range p.Problems {
		expected := strings.HasPrefix(problem, "filter-scanwatch is not running") || p.Remote.Sessions == 0 && strings.HasPrefix(problem, "no sessions")
		if !expected {
			t.Errorf("%v: problem: %s", period, problem)
		}
	}
	s := &summary{
		Remote: p.Remote, Authenticated: p.Authenticated, Local: p.Local, Addresses: p.Addresses, AddressesError: p.AddressesError,
		Aggregated: p.Aggregated, Unwritten: p.Unwritten, NotKept: p.NotKept.Sessions, NotListed: p.NotListed,
		Evidence: names(t, p.Evidence), Organisations: names(t, p.Organisations), Helo: names(t, p.Helo),
		Sources:  keyed(t, p.Sources, func(s *sourceCount) string { return s.Address }),
		Auth:     keyed(t, p.Auth, func(s *sourceCount) string { return s.Address }),
		Networks: keyed(t, p.Networks, func(n *network) string { return n.Prefix }),
		Harvest:  keyed(t, p.Harvest, func(a *attempt) string { return a.Address }),
		Relay:    keyed(t, p.Relay, func(a *attempt) string { return a.Address }),
		Rules:    keyed(t, p.Rules, func(r *rule) string { return r.Rule }),
	}
	for _, span := range p.Timeline {
		s.TimelineSum, s.TimelineFind = s.TimelineSum+span.Sessions, s.TimelineFind+span.Found
	}
	return s
}

func names(t *testing.T, list []named) map[string]int {
	t.Helper()
	m := map[string]int{}
	for _, n := range list {
		m[n.Name] += n.Sessions
	}
	if len(m) != len(list) {
		t.Errorf("names are listed twice: %v", list)
	}
	return m
}

func keyed[T any](t *testing.T, list []T, key func(*T) string) map[string]T {
	t.Helper()
	m := map[string]T{}
	for i := range list {
		m[key(&list[i])] = list[i]
	}
	if len(m) != len(list) {
		t.Errorf("%d of %T are listed twice", len(list)-len(m), list)
	}
	return m
}

// compare logs the differences between two structs. It prints only a few elements of each map.
func compare(t *testing.T, what string, got, want any) {
	t.Helper()
	g, w := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range g.NumField() {
		name := g.Type().Field(i).Name
		a, b := g.Field(i), w.Field(i)
		if a.Kind() != reflect.Map {
			if !reflect.DeepEqual(a.Interface(), b.Interface()) {
				t.Errorf("%s: %s is %+v, want %+v", what, name, a, b)
			}
			continue
		}
		wrong := map[string]string{}
		for _, m := range []reflect.Value{a, b} {
			for _, k := range m.MapKeys() {
				x, y := value(a, k), value(b, k)
				if !reflect.DeepEqual(x, y) {
					wrong[fmt.Sprint(k)] = fmt.Sprintf("%v is %+v, want %+v", k, x, y)
				}
			}
		}
		var some []string
		for _, text := range wrong {
			some = append(some, text)
		}
		slices.Sort(some)
		if len(some) > 0 {
			t.Errorf("%s: %s has %d of %d wrong elements, such as %q", what, name, len(some), b.Len(), some[:min(len(some), 4)])
		}
	}
}

// value returns the element of a map, or nil.
func value(m, k reflect.Value) any {
	if v := m.MapIndex(k); v.IsValid() {
		return v.Interface()
	}
	return nil
}
