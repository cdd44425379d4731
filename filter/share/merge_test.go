package share

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/memory"
	"scanwatch/internal/kv"
	"scanwatch/rules"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// randomRows returns registers of all kinds, in the order in which a host has sent
// them.
func randomRows(r *rand.Rand, name string) (out []Row) {
	n := &host{name: name, memory: memory.New(), replica: New(name, DefaultLimits())}
	n.memory.Load(func(yield func(kv.Entry) bool) {
		yield(kv.Entry{Bucket: "secret", Key: []byte("hash"), Value: []byte(simKey)})
	}, noon.UnixMicro())
	n.memory.Counters.Watch([]rules.Window{simWindow, simSite})
	n.memory.Announce()
	for range 30 {
		now := noon.Add(time.Duration(r.IntN(3600)-1800) * time.Second)
		at := now.UnixMicro()
		c := simClients[r.IntN(len(simClients))]
		p := simNetworks[r.IntN(len(simNetworks))]
		switch rcpt := []byte{'r', '0' + byte(r.IntN(3)), '@', 'x'}; r.IntN(8) {
		case 0:
			n.memory.Bans.Add(c, memory.BanRequest{Ladder: []time.Duration{0, time.Hour, 24 * time.Hour}, Rule: "harvest", Session: r.Uint64()}, at)
		case 1:
			n.memory.Bans.AddPrefix(p, time.Duration(r.IntN(90))*time.Hour, "enough", at)
		case 2:
			n.memory.Bans.Revoke(p, true, at)
		case 3:
			n.memory.Peers.Delivered(c, memory.Delivery{Messages: 1, Senders: []string{"example.com"}}, at)
		case 4:
			n.memory.Recipients.Accepted(rcpt, at)
		case 5:
			n.memory.Recipients.Refused(c, rcpt, at)
		case 6:
			n.memory.Logins.Failed(c, at)
		case 7:
			n.memory.Counters.Add(c, rules.UnknownRecipient, at)
		}
		out = append(out, n.replica.Own(n.memory.Outgoing(1<<20, 0), now)...)
	}
	return out
}

// all returns all rows from repeated calls to Changed.
func all(r *Replica) string {
	r.Resend()
	list := r.Changed(math.MaxInt, noon)
	var lines []string
	for _, f := range list {
		lines = append(lines, fmt.Sprintf("%s %x %x %s\n", f.Bucket, f.Key, f.Value, f.Origin))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// TestAnyOrder checks that the result does not depend on the order, repetition or
// grouping of registers.
func TestAnyOrder(t *testing.T) {
	buckets := map[string]bool{}
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 2))
		var batches []batch
		for _, name := range []string{"a", "b", "c"} {
			for _, row := range randomRows(random, name) {
				batches = append(batches, batch{name, []Row{row}})
				buckets[row.Bucket] = true
			}
		}
		var want string
		for i := range 6 {
			r := New("self", DefaultLimits())
			list := slices.Clone(batches)
			if i > 0 {
				random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
				list = append(list, list[:random.IntN(len(list))]...)
			}
			for len(list) > 0 {
				one := list[0]
				for list = list[1:]; i > 2 && len(list) > 0 && list[0].origin == one.origin; list = list[1:] {
					one.rows = append(slices.Clip(one.rows), list[0].rows...)
				}
				if err := r.Apply(one.origin, one.rows, noon); err != nil {
					t.Fatal(err)
				}
				if i > 3 { // intermediate results do not matter
					r.Changed(random.IntN(5), noon)
				}
			}
			if got := all(r); i == 0 {
				want = got
			} else if got != want {
				t.Fatalf("seed %d, order %d:\n%s\nwant:\n%s", seed, i, got, want)
			}
		}
	}
	if len(buckets) != 5 {
		t.Errorf("only rows of %v", buckets)
	}
}

// TestSameStamp checks that all hosts make the same choice between two registers with
// equal stamps.
func TestSameStamp(t *testing.T) {
	rows := randomRows(rand.New(rand.NewPCG(1, 1)), "a")
	i := slices.IndexFunc(rows, func(r Row) bool { return r.Value != "" && r.Bucket != memory.BansBucket })
	one, two := rows[i], rows[i]
	two.Value = ""
	a, b := New("self", DefaultLimits()), New("self", DefaultLimits())
	_ = a.Apply("a", []Row{one, two}, noon)
	_ = b.Apply("a", []Row{two, one}, noon)
	if x, y := all(a), all(b); x != y {
		t.Errorf("%s\n%s", x, y)
	}
}

// TestCombineAnyOrder checks that the result of Combine does not depend on the order of
// the rows.
func TestCombineAnyOrder(t *testing.T) {
	m := memory.NewMerger()
	random := rand.New(rand.NewPCG(1, 3))
	values := map[rowKey][][]byte{}
	for i := range 20 {
		for _, r := range randomRows(random, fmt.Sprint("h", i)) {
			if r.Value != "" {
				key := rowKey{r.Bucket, r.Key}
				values[key] = append(values[key], []byte(r.Value))
			}
		}
	}
	for key, list := range values {
		want := m.Combine(key.bucket, []byte(key.key), list, noon.Unix())
		for range 10 {
			random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			if got := m.Combine(key.bucket, []byte(key.key), list, noon.Unix()); !bytes.Equal(got, want) {
				t.Fatalf("%q: %x and %x", key, got, want)
			}
		}
		if again := m.Combine(key.bucket, []byte(key.key), append(list, list...), noon.Unix()); key.bucket != "counters" && key.bucket != "peers" && !bytes.Equal(again, want) {
			t.Fatalf("%q twice: %x and %x", key, again, want)
		}
	}
}

// FuzzApply checks that no row causes a panic or exceeds the limits.
func FuzzApply(f *testing.F) {
	for _, r := range randomRows(rand.New(rand.NewPCG(1, 1)), "a") {
		f.Add(r.Bucket, r.Key, r.Value, uint64(r.Stamp))
	}
	f.Add("bans", "\x00\x00\x00\x00\x00", "", uint64(0))
	f.Add(DropBucket, "self", "", uint64(1))
	l := DefaultLimits()
	l.Rows, l.Total, l.Bans = 40, 60, 5
	r, m := New("self", l), memory.New()
	m.Announce()
	f.Fuzz(func(t *testing.T, bucket, key, value string, stamp uint64) {
		for _, name := range []string{"a", "b", "self"} {
			if err := r.Apply(name, []Row{{bucket, key, Stamp(stamp), value}}, noon); err != nil {
				t.Fatal(err)
			}
		}
		if r.Len() > l.Total+r.hosts["self"].Rows || r.hosts["a"].Rows > l.Rows {
			t.Fatal("too many rows")
		}
		if _, err := m.Incoming(r.Changed(1<<20, noon), 0, noon.UnixMicro()); err != nil {
			t.Fatal(err)
		}
		r.Own(m.Outgoing(1<<20, 0), noon)
		r.Expire(noon)
	})
}

// TestRandomRows repeats FuzzApply's check with randomly changed valid rows.
func TestRandomRows(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 4))
	l := DefaultLimits()
	l.Rows, l.Total = 100, 150
	r, m := New("self", l), memory.New()
	m.Announce()
	for i := range 300 {
		rows := randomRows(random, "a")
		for j := range rows {
			for _, s := range []*string{&rows[j].Key, &rows[j].Value} {
				if b := []byte(*s); len(b) > 0 && random.IntN(2) == 0 {
					b[random.IntN(len(b))] = byte(random.Uint32())
					*s = string(b[:len(b)-random.IntN(2)*random.IntN(len(b))])
				}
			}
			if random.IntN(8) == 0 {
				rows[j].Stamp = Stamp(random.Uint64())
			}
		}
		if err := r.Apply(fmt.Sprint("h", i%3), rows, noon); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Incoming(r.Changed(1<<20, noon), 0, noon.UnixMicro()); err != nil {
			t.Fatal(err)
		}
		r.Own(m.Outgoing(1<<20, 0), noon)
		for _, h := range r.Hosts() {
			unbans := 0
			for _, row := range r.Rows(h.Name) {
				if b, ok := memory.ReadBan([]byte(row.Key), []byte(row.Value)); ok && row.Bucket == memory.BansBucket && b.Unbanned != 0 {
					unbans++
				}
			}
			if h.Rows > l.Rows || h.Unbans != unbans {
				t.Fatalf("%+v, %d unbans", h, unbans)
			}
		}
	}
	if r.Len() > l.Total+r.hosts["self"].Rows {
		t.Errorf("%d rows", r.Len())
	}
}

func banRow(addr string, stamp time.Time, since, until time.Time) Row {
	m := memory.New()
	m.Announce()
	m.Bans.AddPrefix(netip.MustParsePrefix(addr), until.Sub(since), "x", since.UnixMicro())
	e := m.Outgoing(1, 0)[0]
	return Row{Bucket: e.Bucket, Key: string(e.Key), Value: string(e.Value), Stamp: At(stamp)}
}

// TestPoison checks that limits apply to a hostile host's rows, and that Hosts names
// the host.
func TestPoison(t *testing.T) {
	hour := noon.Add(time.Hour)
	many := func(n int, since func(i int) time.Time) (rows []Row) {
		row := banRow("10.0.0.1/32", noon, noon, noon.Add(24*time.Hour))
		value := []byte(row.Value)
		for i := range n {
			row.Key = string(append([]byte{32, 10}, byte(i>>16), byte(i>>8), byte(i)))
			binary.BigEndian.PutUint32(value, uint32(since(i).Unix()))
			row.Value = string(value)
			rows = append(rows, row)
		}
		return rows
	}
	unban := banRow("10.0.0.1/32", noon, noon, hour)
	value := []byte(unban.Value)
	value[23] |= 4 // revoked
	unban.Value = string(value)
	large := banRow("10.0.0.1/32", noon, noon, hour)
	large.Value += string(make([]byte, 1<<20))
	for _, tt := range []struct {
		name    string
		rows    []Row
		bans    int // that count
		problem string
	}{
		{"all addresses", []Row{banRow("0.0.0.0/0", noon, noon, hour)}, 0, "bans of networks larger than /24"},
		{"a large network", []Row{banRow("10.0.0.0/8", noon, noon, hour)}, 0, "bans of networks larger than /24"},
		{"a large IPv6 network", []Row{banRow("2001:db8::/32", noon, noon, hour)}, 0, "bans of networks larger than /48"},
		{"the limit of bans in a minute", many(120, func(int) time.Time { return noon }), 120, ""},
		{"one more", many(121, func(int) time.Time { return noon }), 0, "more than 120 bans within a minute"},
		{"100,000 bans in a second", many(100_000, func(int) time.Time { return noon }), 0, "more than 50000 rows of table bans"},
		{"100,000 bans, slowly", many(100_000, func(i int) time.Time { return noon.Add(-time.Duration(i) * time.Second) }), 50_000, "more than 50000 rows of table bans"},
		{"stamp 0", []Row{banRow("10.0.0.1/32", time.Unix(0, 0), noon, hour)}, 0, ""},
		{"a stamp in 2106", []Row{banRow("10.0.0.1/32", time.Unix(math.MaxUint32, 0), noon, hour)}, 0, "times more than 30m0s in the future"},
		{"an unban in the future", []Row{unban}, 0, "times more than 30m0s in the future"},
		{"a start in 2106", []Row{banRow("10.0.0.1/32", noon, time.Unix(math.MaxUint32-3600, 0), time.Unix(math.MaxUint32, 0))}, 0, "times more than 30m0s in the future"},
		{"an end in 2106", []Row{banRow("10.0.0.1/32", noon, noon, time.Unix(math.MaxUint32, 0))}, 1, ""},
		{"a start in 1970", []Row{banRow("10.0.0.1/32", noon, time.Unix(1, 0), time.Unix(math.MaxUint32, 0))}, 0, ""},
		{"a gigantic row", []Row{large}, 0, "invalid rows"},
		{"a row of a table that is not shared", []Row{{"secret", "hash", At(noon), simKey}}, 0, "invalid rows"},
		{"a drop of another host", []Row{{DropBucket, "self", At(noon), ""}}, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, m := New("self", DefaultLimits()), memory.New()
			if err := r.Apply("evil", tt.rows, noon); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Incoming(r.Changed(1<<20, noon), 0, noon.UnixMicro()); err != nil {
				t.Fatal(err)
			}
			if n := m.Bans.Count(noon.UnixMicro()).Active; n != tt.bans {
				t.Errorf("%d bans, want %d", n, tt.bans)
			}
			m.Bans.Each(func(b memory.Ban) {
				if b.Until.After(noon.Add(30 * 24 * time.Hour)) {
					t.Errorf("%+v", b)
				}
			})
			h := r.Hosts()[0]
			if h.Name != "evil" || h.Problem != tt.problem || (h.Omitted == 0) != (tt.problem == "") {
				t.Errorf("%+v", h)
			}
		})
	}
	r := New("self", DefaultLimits())
	if err := r.Apply("evil", []Row{large}, noon); err != nil {
		t.Fatal(err)
	}
	r.Expire(noon.Add(59 * time.Minute))
	if r.Hosts()[0].Omitted != 1 {
		t.Error("the problem is cleared early")
	}
	r.Expire(noon.Add(61 * time.Minute))
	if h := r.Hosts()[0]; h.Omitted != 0 || h.Problem != "" || !h.Last.IsZero() {
		t.Errorf("an old problem: %+v", h)
	}
	r = New("self", DefaultLimits())
	for _, name := range []string{"", "a b", "a\n", "é", string(make([]byte, 65))} {
		if r.Apply(name, nil, noon) == nil {
			t.Errorf("%q is a valid name", name)
		}
	}
}

// TestRateIsOverFewerBans checks that bans count again once their minute no longer has
// more bans than the limit.
func TestRateIsOverFewerBans(t *testing.T) {
	l := DefaultLimits()
	l.Bans = 2
	r := New("self", l)
	var rows []Row
	for _, addr := range []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"} {
		rows = append(rows, banRow(addr, noon, noon, noon.Add(time.Hour)))
	}
	count := func() (n int) {
		r.Resend()
		for _, f := range r.Changed(100, noon) {
			if f.Value != nil {
				n++
			}
		}
		return n
	}
	for i, want := range []int{1, 2, 0} {
		_ = r.Apply("a", rows[i:i+1], noon)
		if n := count(); n != want {
			t.Errorf("%d of %d bans count", n, i+1)
		}
	}
	later := []Row{banRow("10.0.0.1/32", noon.Add(time.Minute), noon.Add(time.Minute), noon.Add(time.Hour))}
	_ = r.Apply("a", later, noon)
	if n := count(); n != 3 {
		t.Errorf("%d bans count", n)
	}
}

// TestDrop checks that Drop removes all registers of a host, that they no longer count
// towards the limits, and that they are ignored if they arrive again.
func TestDrop(t *testing.T) {
	l := DefaultLimits()
	l.Rows = 2
	r := New("self", l)
	rows := []Row{banRow("10.0.0.1/32", noon, noon, noon.Add(time.Hour)), banRow("10.0.0.2/32", noon.Add(5*time.Minute), noon, noon.Add(time.Hour))}
	_ = r.Apply("a", rows, noon)
	r.Changed(100, noon)
	n, mark := r.Drop("a", noon)
	if n != 2 || r.Len() != 0 || len(r.Changed(100, noon)) != 2 {
		t.Errorf("%d rows dropped, %d left", n, r.Len())
	}
	again := New("self", l)
	_ = again.Apply("self", []Row{mark}, noon)
	for _, r := range []*Replica{r, again} {
		_ = r.Apply("a", rows, noon)
		if r.Len() != 0 {
			t.Error("rows from before the drop")
		}
		_ = r.Apply("a", []Row{banRow("10.0.0.1/32", noon.Add(6*time.Minute), noon, noon.Add(time.Hour)), banRow("10.0.0.3/32", noon.Add(6*time.Minute), noon, noon.Add(time.Hour))}, noon)
		if h := r.Hosts()[0]; r.Len() != 2 || h.Problem != "" || len(r.Rows("self")) != 1 {
			t.Errorf("after the drop: %+v, %d rows", h, r.Len())
		}
	}
	if n, _ := r.Drop("self", noon); n != 0 {
		t.Error("a host dropped itself")
	}
}

// TestLongBanAfterUnban checks that a year-long ban does not become active again when
// its unban has expired or was deleted.
func TestLongBanAfterUnban(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		f := newFleet(t, "mx1", "mx2", "mx3")
		p := netip.MustParsePrefix("192.0.2.1/32")
		f.hosts[0].memory.Bans.AddPrefix(p, 365*24*time.Hour, "enough", f.now.UnixMicro())
		f.exchange()
		f.unban(f.hosts[1], "192.0.2.1")
		if f.exchange(); deleted {
			f.hosts[1].memory.Erase(memory.Erasure{Prefix: p, Bans: true}, f.now.UnixMicro(), false)
			f.exchange()
		}
		for range 300 {
			f.now = f.now.Add(24 * time.Hour)
			for _, h := range f.hosts {
				h.replica.Expire(f.now)
			}
			f.exchange()
			for _, h := range f.hosts {
				if b, ok := h.banned(f.now, "192.0.2.1"); ok {
					t.Fatalf("deleted %v, %s at %v: %+v", deleted, h.name, f.now, b)
				}
			}
		}
		f.now = f.now.Add(66 * 24 * time.Hour)
		for _, h := range f.hosts {
			h.replica.Expire(f.now.Add(91 * 24 * time.Hour))
			h.replica.Changed(100, f.now)
			if h.replica.Expire(f.now.Add(91 * 24 * time.Hour)); h.replica.Len() != 0 {
				t.Errorf("%s keeps %d rows", h.name, h.replica.Len())
			}
		}
	}
}

// TestClockFarAhead checks that a host sends its rows again after its clock has been
// years ahead.
func TestClockFarAhead(t *testing.T) {
	f := newFleet(t, "mx1", "mx2")
	f.hosts[0].skew = 10 * 365 * 24 * time.Hour
	f.ban(f.hosts[0], "192.0.2.1")
	f.exchange()
	if h := f.hosts[1].replica.Hosts()[0]; h.Problem == "" {
		t.Errorf("%+v", h)
	}
	f.hosts[0].skew = 0
	f.ban(f.hosts[0], "192.0.2.2")
	f.exchange()
	for key := range f.hosts[0].replica.rows {
		g, _ := f.hosts[0].replica.register(key, f.hosts[0].replica.hosts["mx1"])
		if g.stamp > At(f.now.Add(time.Minute)) {
			t.Errorf("stamp %v", g.stamp.Time())
		}
	}
	if _, ok := f.hosts[1].banned(f.now, "192.0.2.2"); !ok {
		t.Error("the later ban is unknown")
	}
}

// TestMissed checks that rows with a stamp in the future are read again once that time
// has come.
func TestMissed(t *testing.T) {
	r := New("self", DefaultLimits())
	row := banRow("10.0.0.1/32", noon.Add(time.Hour), noon, noon.Add(24*time.Hour))
	_ = r.Apply("a", []Row{row}, noon)
	if list := r.Missed(noon); len(list) != 0 || r.Len() != 0 {
		t.Error("read too early", list)
	}
	if list := r.Missed(noon.Add(time.Hour)); !slices.Equal(list, []string{"a"}) {
		t.Error("not read again", list)
	}
	if _ = r.Apply("a", []Row{row}, noon.Add(time.Hour)); r.Len() != 1 || len(r.Missed(noon.Add(2*time.Hour))) != 0 {
		t.Error("read again and again")
	}
}

// TestAllBansAgain checks that a host's bans still count if the host has lost its
// registers and therefore sends all bans at the same time.
func TestAllBansAgain(t *testing.T) {
	f := newFleet(t, "mx1", "mx2")
	for i := range 300 {
		f.now = f.now.Add(10 * time.Second)
		f.hosts[0].memory.Bans.AddPrefix(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), 24*time.Hour, "x", f.now.UnixMicro())
	}
	f.exchange()
	if n := f.hosts[1].memory.Bans.Count(f.now.UnixMicro()).Active; n != 300 {
		t.Errorf("%d bans", n)
	}
}

// TestUnbans checks sequences of bans and unbans with wrong clocks, and with several
// changes that arrive together.
func TestUnbans(t *testing.T) {
	const addr = "192.0.2.1"
	p := netip.MustParsePrefix(addr + "/32")
	for _, tt := range []struct {
		name   string
		do     func(f *fleet)
		banned bool
	}{
		{"a second unban by a host with a slower clock than the first", func(f *fleet) {
			f.hosts[1].skew, f.hosts[2].skew = 10*time.Minute, -10*time.Minute
			f.ban(f.hosts[0], addr)
			f.exchange()
			f.unban(f.hosts[1], addr)
			f.exchange()
			f.ban(f.hosts[0], addr)
			f.exchange()
			f.unban(f.hosts[2], addr)
		}, false},
		{"an unban and a shorter ban, received together by the host of a longer ban", func(f *fleet) {
			f.hosts[0].memory.Bans.AddPrefix(p, 400*time.Hour, "x", f.now.UnixMicro())
			f.exchange()
			lone := f.hosts[0]
			f.hosts = f.hosts[1:]
			f.unban(f.hosts[0], addr)
			f.exchange()
			f.hosts[1].memory.Bans.AddPrefix(p, time.Minute, "x", f.now.UnixMicro())
			f.exchange()
			f.hosts = append(f.hosts, lone)
			for _, h := range f.hosts {
				lone.inbox = append(lone.inbox, batch{h.name, h.replica.Rows(h.name)})
			}
			f.now = f.now.Add(time.Hour)
		}, false},
		{"an unban while another host's ban arrives", func(f *fleet) {
			f.ban(f.hosts[0], addr)
			f.exchange()
			f.hosts[2].memory.Bans.AddPrefix(p, 400*time.Hour, "x", f.now.UnixMicro())
			f.unban(f.hosts[0], addr)
		}, false},
		{"a hostile unban, and another offence", func(f *fleet) {
			f.ban(f.hosts[0], addr)
			f.exchange()
			evil := banRow(addr+"/32", f.now.Add(29*time.Minute), f.now, f.now.Add(29*time.Minute))
			value := []byte(evil.Value)
			value[23] |= 4 // revoked
			evil.Value = string(value)
			for _, h := range f.hosts {
				h.inbox = append(h.inbox, batch{"evil", []Row{evil}})
			}
			f.exchange()
			for _, h := range f.hosts {
				if b, ok := h.banned(f.now, addr); ok {
					f.t.Errorf("%s: %+v", h.name, b)
				}
			}
			f.now = f.now.Add(time.Second)
			f.ban(f.hosts[0], addr)
		}, true},
		{"a filter that has lost an unban", func(f *fleet) {
			f.ban(f.hosts[0], addr)
			disk := f.hosts[0].memory.Changes(100)
			f.exchange()
			f.unban(f.hosts[0], addr)
			f.exchange()
			f.hosts[0].memory = memory.New()
			f.hosts[0].memory.Load(slices.Values(disk), f.now.UnixMicro())
			f.hosts[0].memory.Announce()
			f.hosts[0].replica.Resend()
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFleet(t, "mx1", "mx2", "mx3")
			tt.do(f)
			f.exchange()
			f.exchange()
			for _, h := range f.hosts {
				if b, ok := h.banned(f.now, addr); ok != tt.banned {
					t.Errorf("%s: %v %+v", h.name, ok, b)
				}
			}
		})
	}
}
