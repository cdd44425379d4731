package month

// This file prints a month's tables.

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"scanwatch/filter/memory"
)

// countBans counts the bans that rules imposed on legitimate hosts. A ban on a /64 that contains
// an attacker does not count.
func (w *World) countBans() {
	w.memory.Bans.Each(func(b memory.Ban) {
		if b.Manual || b.Observe {
			return
		}
		for a, k := range w.owners {
			if b.Prefix.Contains(a) && (!k.Shared || b.Prefix.IsSingleIP()) {
				k.Bans++
				if k.Why == nil {
					k.Why = make(map[string]int)
				}
				k.Why["banned by "+b.Rule]++
			}
		}
	})
}

// Failures returns the broken promises. The presets standard and open must not reject any message
// or login of a legitimate client, or ban a legitimate host. The tight preset may reject or ban
// legitimate clients only if their kind has a reason in the field Tight. A message may be delayed
// only if its kind has a reason in the field Later.
func (w *World) Failures(preset string) (list []string) {
	for _, k := range w.Kinds {
		fail := func(n int, what string) {
			if n > 0 {
				list = append(list, fmt.Sprintf("%s: %s: %d %s", preset, k.Name, n, what))
			}
		}
		tight := preset == "tight" && k.Tight != ""
		lost := k.Lost
		if preset == "tight" {
			lost -= k.Excused
		}
		fail(lost, "messages lost")
		fail(k.Refused, "logins rejected")
		if !tight {
			if k.Ban == "" {
				fail(k.Bans, "hosts banned")
			}
			if k.Later == "" {
				fail(k.Delayed, "messages delayed")
			}
			if preset != "tight" || k.Later == "" { // if DNS fails, the tight preset adds the points of several rules
				fail(k.Junked, "messages marked as junk")
			}
		}
	}
	return list
}

// WriteKinds prints the legitimate clients' results.
func (w *World) WriteKinds(out io.Writer, why bool) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "kind\tsessions\tanswered no\tmessages\tat once\tdelayed\tlongest\tlost\tjunk\tto nobody\tlogins\trejected\tbans\t")
	var sum Kind
	for _, k := range append(w.Kinds, &sum) {
		name := k.Name
		if k == &sum {
			name = "all"
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%d\t%v\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, k.Sessions, k.Turned, k.Sent, k.AtOnce, k.Delayed,
			k.Longest.Round(time.Minute), k.Lost, k.Junked, k.Nowhere, k.Logins, k.Refused, k.Bans)
		for i, n := range []int{k.Sessions, k.Turned, k.Sent, k.AtOnce, k.Delayed, k.Lost, k.Junked, k.Nowhere, k.Logins, k.Refused, k.Bans} {
			*[]*int{&sum.Sessions, &sum.Turned, &sum.Sent, &sum.AtOnce, &sum.Delayed, &sum.Lost, &sum.Junked, &sum.Nowhere, &sum.Logins, &sum.Refused, &sum.Bans}[i] += n
		}
		sum.Longest = max(sum.Longest, k.Longest)
	}
	t.Flush()
	if !why {
		return
	}
	for _, k := range w.Kinds {
		texts := slices.SortedFunc(maps.Keys(k.Why), func(a, b string) int { return cmp.Or(k.Why[b]-k.Why[a], strings.Compare(a, b)) })
		for _, text := range texts {
			fmt.Fprintf(out, "  %5d  %s: %s\n", k.Why[text], k.Name, text)
		}
	}
}

// WriteAttacks prints the attackers' results in several worlds. The worlds differ only in the
// policy.
func WriteAttacks(out io.Writer, presets []string, worlds []*World) {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "attacker\tresult\t")
	for _, p := range presets {
		fmt.Fprintf(t, "%s\trejected\t", p)
	}
	fmt.Fprintln(t)
	for i, a := range worlds[0].Attacks {
		for j, what := range []string{"mailboxes", "passwords", "foreign", "messages"} {
			rows := make([]*tally, len(worlds))
			for k, w := range worlds {
				b := w.Attacks[i]
				rows[k] = []*tally{&b.Learned, &b.Passwords, &b.Relayed, &b.Sent}[j]
			}
			if rows[0].Total == 0 {
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t", a.Name, what)
			for k, r := range rows {
				fmt.Fprintf(t, "%v\t%d of %d\t", r, worlds[k].Attacks[i].Turned, worlds[k].Attacks[i].Sessions)
			}
			fmt.Fprintln(t)
		}
		if a.Area == "visitor" && a.Sent.Total == 0 {
			fmt.Fprintf(t, "%s\tsessions\t", a.Name)
			for _, w := range worlds {
				fmt.Fprintf(t, "-\t%d of %d\t", w.Attacks[i].Turned, w.Attacks[i].Sessions)
			}
			fmt.Fprintln(t)
		}
	}
	t.Flush()
}
