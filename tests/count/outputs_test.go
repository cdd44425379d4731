//go:build linux

package count

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/smtpd"
)

// dumped holds the fields of a record that scanwatch dump prints and the test counts. The map of
// users counts attempts, and all other maps count sessions.
type dumped struct {
	ID, Src, Ban                                string
	Start, End                                  int64
	Sum                                         int
	Local                                       bool
	Counts                                      counts
	Helo, Evidence, Users, Verdicts, Recipients map[string]int
	References                                  []string
}

// key returns the record as text, for comparisons with the output.
func (d *dumped) key() string {
	slices.Sort(d.References)
	text, _ := json.Marshal(d) // sorts the keys of maps
	return string(text)
}

// elements holds the lists in dump's output.
type elements struct {
	Helo     []tallied
	Auth     []tallied
	Findings []tallied
	Verdicts []tallied
	Bans     []struct {
		Rule, Prefix, Until string
		Enforced            bool
	}
	Recipients   []tallied // of an aggregate
	Transactions []struct{ Recipients []tallied }
}

// tallied is an element of a list.
type tallied struct {
	Name, User, Evidence, Rule, Domain, Address, Result string
	Enforced                                            bool
	Sessions, Attempts, Recipients, Most                int
}

// dump returns the records that a period selects.
func dump(t *testing.T, dir string, period []string) (all []string) {
	t.Helper()
	cmd := exec.Command(smtpd.Bin("scanwatch"), append([]string{"-s", dir, "dump"}, period...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(bufio.NewReaderSize(out, 1<<20))
	for {
		var r struct {
			Session, Src string
			Start, End   time.Time
			Local        bool
			Counts       counts
			Sum          int `json:"sessions"`
			References   []string
			elements
		}
		if err := lines.Decode(&r); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		d := dumped{ID: r.Session, Src: r.Src, Start: r.Start.UnixMicro(), End: r.End.UnixMicro(), Sum: r.Sum, Local: r.Local, Counts: r.Counts, References: r.References}
		r.elements.count(&d)
		all = append(all, d.key())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

// count fills in d's maps.
func (e *elements) count(d *dumped) {
	d.Helo, d.Evidence, d.Users, d.Verdicts, d.Recipients = map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}
	set := func(m map[string]int, name string, x *tallied) { // each session counts once
		if m[name] = max(x.Sessions, 1); d.Sum > 0 {
			m[name] = x.Sessions
		}
	}
	for i := range e.Helo {
		if x := &e.Helo[i]; x.Name != "" || d.Sum > 0 {
			set(d.Helo, clip(x.Name), x)
		}
	}
	for i := range e.Findings {
		set(d.Evidence, e.Findings[i].Evidence, &e.Findings[i])
	}
	for i := range e.Verdicts {
		x := &e.Verdicts[i]
		set(d.Verdicts, fmt.Sprint(x.Rule, " ", x.Enforced), x)
	}
	for i := range e.Auth {
		if x := &e.Auth[i]; x.Result == "fail" {
			d.Users[x.User] += max(x.Attempts, 1)
		}
	}
	for _, x := range e.Recipients {
		d.Recipients[x.Domain+" "+x.Result] = x.Recipients
		d.Recipients[x.Domain+" "+x.Result+" most"] = x.Most
	}
	for _, tx := range e.Transactions {
		for _, x := range tx.Recipients {
			if x.Result == "tempfail" {
				continue // aggregates do not contain deferred recipients
			}
			_, domain, _ := strings.Cut(x.Address, "@")
			d.Recipients[domain+" "+x.Result]++
			d.Recipients[domain+" "+x.Result+" most"]++
		}
	}
	for _, b := range e.Bans {
		d.Ban = fmt.Sprint(b.Rule, " ", b.Prefix, " ", b.Until, " ", b.Enforced)
	}
}

// dumped returns the content that scanwatch dump must print for the record.
func (r *record) dumped() *dumped {
	d := &dumped{
		ID: fmt.Sprintf("%016x", r.id), Start: r.sessions[0].start, End: r.end, Local: r.sessions[0].local,
		Helo: map[string]int{}, Evidence: map[string]int{}, Users: map[string]int{}, Verdicts: map[string]int{}, Recipients: map[string]int{},
	}
	if r.src.IsValid() {
		d.Src = r.src.String()
	}
	if r.sum {
		d.Sum = len(r.sessions)
	}
	for _, s := range r.sessions {
		d.Start = min(d.Start, s.start)
		d.Counts.add(&s.counts)
		further := 0
		for _, name := range s.names {
			if name = clip(name); r.sum && !contains(r.names, name) {
				further = 1
				continue
			}
			d.Helo[name]++
		}
		if further > 0 {
			d.Helo[""]++
		}
		for _, token := range s.evidence {
			d.Evidence[token]++
		}
		for i, user := range s.users {
			d.Users[user] += s.tries[i]
		}
		if s.rejected != "" {
			d.Verdicts[s.rejected+" true"]++
			if r.sum {
				d.References = append(d.References, fmt.Sprintf("%016x", s.id))
			}
		}
		if s.watched {
			d.Verdicts["watched false"]++
		}
		for _, n := range s.domains {
			for result, count := range map[string]int{"ok": n.ok, "permfail": n.permfail} {
				if name := n.domain + " " + result; count > 0 {
					d.Recipients[name] += count
					d.Recipients[name+" most"] = max(d.Recipients[name+" most"], count)
				}
			}
		}
		if s.ban != nil {
			until := time.Unix(s.until, 0).UTC().Format("2006-01-02T15:04:05.000000Z")
			d.Ban = fmt.Sprint(s.ban.rule, " ", source(s.src), " ", until, " true")
		}
	}
	return d
}

// compareDump compares a period's records in order.
func (r *run) compareDump(p period, records []*record) {
	r.t.Helper()
	var want []string
	for _, one := range sorted(records) {
		want = append(want, one.dumped().key())
	}
	got := dump(r.t, r.dir, p.args())
	if len(got) != len(want) {
		r.t.Errorf("%s: %d records, want %d", p.name, len(got), len(want))
	}
	wrong := 0
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			if wrong++; wrong < 4 {
				r.t.Errorf("%s: record %d is\n%s, want\n%s", p.name, i, got[i], want[i])
			}
		}
	}
}

// sorted returns records in the order in which they ended.
func sorted(records []*record) []*record {
	records = slices.Clone(records)
	slices.SortFunc(records, func(a, b *record) int {
		if a.end != b.end {
			return int(a.end - b.end)
		}
		return int(a.id) - int(b.id)
	})
	return records
}

// compareStats compares each day's counters.
func (r *run) compareStats() {
	r.t.Helper()
	var stats struct {
		Counted []struct {
			Day      time.Time
			Counters map[string]int
		}
	}
	cli.Decode(r.t, cli.Run(r.t, r.dir, "stats", "--json"), &stats)
	type days struct{ Days map[string]map[string]int }
	got, want := days{map[string]map[string]int{}}, days{map[string]map[string]int{}}
	for _, d := range stats.Counted {
		got.Days[d.Day.Format(time.DateOnly)] = d.Counters
	}
	for _, one := range r.ledger.records {
		for _, s := range one.sessions {
			day := time.UnixMicro(s.end).UTC().Format(time.DateOnly)
			if want.Days[day] == nil {
				want.Days[day] = map[string]int{}
			}
			s.countDay(want.Days[day], one.sum)
		}
	}
	compare(r.t, "stats", got, want)
}

// countDay adds a session to the counters of its day.
func (s *session) countDay(day map[string]int, sum bool) {
	add := func(name string, n int) {
		if n > 0 {
			day[name] += n
		}
	}
	yes := func(name string, is bool) {
		if is {
			day[name]++
		}
	}
	day["sessions"]++
	yes("local", s.local)
	yes("authenticated", s.AuthPass > 0)
	yes("found", len(s.evidence) > 0 && !s.local && s.AuthPass == 0)
	yes("refused", s.rejected != "")
	yes("whole", !sum)
	yes("summed", sum)
	add("mails", s.Messages)
	add("rcpt-ok", s.RcptOK)
	add("rcpt-permfail", s.RcptPermfail)
	add("rcpt-tempfail", s.RcptTempfail)
	add("auth-fail", s.AuthFail)
	for _, list := range [][]string{s.evidence, s.implied} {
		for _, token := range list {
			day["evidence "+token]++
		}
	}
}

// compareScanners compares the report on known scanning organisations.
func (r *run) compareScanners(p period, records []*record) {
	r.t.Helper()
	type org struct {
		Sessions, Addresses int
		First, Last         int64
	}
	var printed struct {
		Scanners []struct {
			Organisation        string
			Sessions, Addresses int
			First, Last         time.Time
		}
	}
	cli.Decode(r.t, cli.Run(r.t, r.dir, append([]string{"report", "scanners", "--json"}, p.args()...)...), &printed)
	type table struct{ Scanners map[string]org }
	got, want := table{map[string]org{}}, table{map[string]org{}}
	for _, o := range printed.Scanners {
		got.Scanners[o.Organisation] = org{o.Sessions, o.Addresses, o.First.UnixMicro(), o.Last.UnixMicro()}
	}
	seen := map[netip.Addr]bool{}
	for _, one := range records {
		for _, s := range one.sessions {
			if !slices.Contains(s.evidence, "scanner") {
				continue
			}
			name := organisations["scanner"]
			o, ok := want.Scanners[name]
			if !ok {
				o.First, o.Last = s.end, s.end
			}
			if !seen[s.src] {
				seen[s.src] = true
				o.Addresses++
			}
			o.Sessions, o.First, o.Last = o.Sessions+1, min(o.First, s.end), max(o.Last, s.end)
			want.Scanners[name] = o
		}
	}
	compare(r.t, p.name, got, want)
}

// compareBans compares the list of bans.
func (r *run) compareBans() {
	r.t.Helper()
	type row struct {
		Rule               string
		Since, Until, Last int64
		Times, Attempts    int
		Session            string
	}
	type table struct{ Bans map[string]row }
	got, want := table{map[string]row{}}, table{map[string]row{}}
	for text := range strings.Lines(cli.Run(r.t, r.dir, "bans", "--all", "--json")) {
		var b struct {
			Prefix             netip.Prefix
			Rule, Session      string
			Since, Until, Last time.Time
			Times, Attempts    int
		}
		cli.Decode(r.t, text, &b)
		one := row{b.Rule, b.Since.Unix(), b.Until.Unix(), 0, b.Times, b.Attempts, b.Session}
		if !b.Last.IsZero() {
			one.Last = b.Last.Unix()
		}
		got.Bans[b.Prefix.String()] = one
	}
	for p, b := range r.world.bans {
		want.Bans[p.String()] = row{b.rule, b.since, b.until, b.last, b.times, b.attempts, fmt.Sprintf("%016x", b.session)}
	}
	compare(r.t, "bans", got, want)
}
