package facts

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/memory"
	"scanwatch/filter/share"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

func client(addr string) *memory.Client { return &memory.Client{Addr: netip.MustParseAddr(addr)} }

// export returns a file with m's rows.
func export(t *testing.T, m *memory.Memory, x Exporter) []byte {
	t.Helper()
	m.Announce()
	var b bytes.Buffer
	if _, err := x.Write(&b, slices.Values(m.Outgoing(1000, 0)), noon); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExchange(t *testing.T) {
	key := fleetkey.New()
	m := memory.New()
	m.UseKey(key.State())
	m.Bans.Add(client("192.0.2.1"), memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "harvest"}, noon.UnixMicro())
	m.Recipients.Accepted([]byte("joe@example.org"), noon.UnixMicro())
	m.Peers.Delivered(client("192.0.2.2"), memory.Delivery{Messages: 1}, noon.UnixMicro())
	all := export(t, m, Exporter{Host: "mx1", Key: key, Names: true})
	if !bytes.Contains(all, []byte(`"ban":{"prefix":"192.0.2.1/32","since":"2026-12-01T12:00:00.000000Z","until":"2026-12-01T13:00:00.000000Z","rule":"harvest"}`)) || bytes.Contains(all, []byte("joe")) {
		t.Fatalf("%s", all)
	}
	f, err := Read(bytes.NewReader(all), key, key.Fingerprint())
	if err != nil || f.Host != "mx1" || len(f.Rows) != 3 || f.Omitted != 0 {
		t.Fatalf("%+v %v", f, err)
	}
	rows, hosts, err := Merge("mx2", share.DefaultLimits(), []*File{f}, noon)
	if err != nil || len(rows) != 3 || len(hosts) != 1 || hosts[0].Problem != "" {
		t.Fatal(rows, hosts, err)
	}
	other := memory.New()
	other.UseKey(key.State())
	if _, err := other.Incoming(rows, 0, noon.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if b, ok := first(other.Bans.Banned(client("192.0.2.1"), noon.UnixMicro())); !ok || b.Origin != "mx1" {
		t.Fatal(b, ok)
	}
	if s := other.Peers.Standing(client("192.0.2.2"), noon.Add(24*time.Hour).UnixMicro()); s.Origin != "mx1" {
		t.Errorf("%+v", s)
	}
	if _, _, err := Merge("mx1", share.DefaultLimits(), []*File{f}, noon); err == nil {
		t.Error("a host believes another one with its name")
	}
	// Another operator hashes names with a different key.
	if f, err := Read(bytes.NewReader(all), key, ""); err != nil || len(f.Rows) != 1 || f.Omitted != 2 {
		t.Errorf("%+v %v", f, err)
	}
	// A ban that starts in the same second as an unban counts as ended.
	m.Bans.Revoke(netip.MustParsePrefix("192.0.2.1/32"), false, noon.UnixMicro())
	unban, err := Read(bytes.NewReader(export(t, m, Exporter{Host: "mx3", Key: key, Names: true})), key, "")
	if err != nil {
		t.Fatal(err)
	}
	rows, _, err = Merge("mx2", share.DefaultLimits(), []*File{f, unban}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Incoming(rows, 0, noon.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if b, ok := other.Bans.Enforced(netip.MustParsePrefix("192.0.2.1/32"), noon.UnixMicro()); ok {
		t.Error(b)
	}
}

// TestClockAhead checks that an unban ends a ban by a host whose clock is ahead. The ban must end
// on both hosts, however often the files are read. A later ban must remain active.
func TestClockAhead(t *testing.T) {
	key := fleetkey.New()
	p := netip.MustParsePrefix("192.0.2.1/32")
	one, two := memory.New(), memory.New()
	ahead := noon.Add(5 * time.Minute)
	one.Bans.Add(client("192.0.2.1"), memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "harvest", Session: 7}, ahead.UnixMicro())
	fileOf := func(m *memory.Memory, host string) *File {
		t.Helper()
		f, err := Read(bytes.NewReader(export(t, m, Exporter{Host: host, Key: key})), key, "")
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	read := func(m *memory.Memory, self string, f *File, now time.Time) {
		t.Helper()
		m.Announce()
		rows, _, err := Merge(self, share.DefaultLimits(), []*File{f}, now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Incoming(rows, 0, now.UnixMicro()); err != nil {
			t.Fatal(err)
		}
	}
	file := fileOf(one, "mx1")
	read(two, "mx2", file, noon)
	if _, ok := two.Bans.Enforced(p, noon.UnixMicro()); !ok {
		t.Fatal("mx2 does not ban the client")
	}
	if ended := two.Bans.Revoke(p, false, noon.Add(time.Minute).UnixMicro()); len(ended) != 1 {
		t.Fatal(ended)
	}
	for range 2 {
		read(one, "mx1", fileOf(two, "mx2"), ahead.Add(2*time.Minute))
		read(two, "mx2", file, noon.Add(10*time.Minute))
		if b, ok := one.Bans.Enforced(p, ahead.Add(2*time.Minute).UnixMicro()); ok {
			t.Errorf("mx1 bans the client: %+v", b)
		}
		if b, ok := two.Bans.Enforced(p, noon.Add(10*time.Minute).UnixMicro()); ok {
			t.Errorf("mx2 bans the client: %+v", b)
		}
	}
	one.Bans.Add(client("192.0.2.1"), memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "harvest", Session: 8}, ahead.Add(20*time.Minute).UnixMicro())
	read(two, "mx2", fileOf(one, "mx1"), noon.Add(20*time.Minute))
	if _, ok := two.Bans.Enforced(p, noon.Add(20*time.Minute).UnixMicro()); !ok {
		t.Error("mx2 does not know the later ban")
	}
}

// TestOneAfterAnother checks that a host's file does not delete rows of another host, whose file
// was read earlier.
func TestOneAfterAnother(t *testing.T) {
	key := fleetkey.New()
	p := netip.MustParsePrefix("192.0.2.1/32")
	here := memory.New()
	read := func(host string, d time.Duration, imposed time.Time, now time.Time) {
		t.Helper()
		m := memory.New()
		m.Bans.AddPrefix(p, d, "x", imposed.UnixMicro())
		f, err := Read(bytes.NewReader(export(t, m, Exporter{Host: host, Key: key})), key, "")
		if err != nil {
			t.Fatal(err)
		}
		rows, hosts, err := Merge("mx1", share.DefaultLimits(), []*File{f}, now)
		if err != nil || len(hosts) != 1 || hosts[0].By != share.ByFile || !hosts[0].Heard.Equal(noon) {
			t.Fatal(hosts, err)
		}
		if _, err := here.Incoming(rows, 0, now.UnixMicro()); err != nil {
			t.Fatal(err)
		}
		if b, ok := here.Bans.Enforced(p, now.UnixMicro()); !ok || b.Origin != "mx2" {
			t.Errorf("after the file of %s: %v %+v", host, ok, b)
		}
	}
	read("mx2", 3*time.Hour, noon, noon)
	read("mx3", time.Hour, noon, noon)
	read("mx3", time.Minute, noon.Add(-100*24*time.Hour), noon) // an expired row
}

// TestClock checks the warnings about another host's clock.
func TestClock(t *testing.T) {
	for age, want := range map[time.Duration]string{
		-3 * time.Minute: "the clock of mx2 is at least 3m ahead", -time.Second: "", 5 * time.Minute: "",
		3 * time.Hour: "the difference between the clocks is unknown",
	} {
		f := File{Host: "mx2", Time: noon.Add(-age)}
		if got := f.Clock(noon); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%v: %q, want %q", age, got, want)
		}
	}
}

// TestWithoutCode checks that rows without a valid code are not stored.
func TestWithoutCode(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`{"schema":1,"host":"mx1","time":"2026-12-01T12:00:00Z"}` + "\n")
	for range 100_000 {
		b.WriteString(`{"table":"bans","key":"IMAAAgE=","value":"AA=="}` + "\n")
	}
	b.WriteString(`{"rows":100000,"code":"00"}` + "\n")
	r := bytes.NewReader(b.Bytes())
	if n := testing.AllocsPerRun(1, func() {
		if _, err := Read(r, fleetkey.New(), ""); err == nil || !strings.Contains(err.Error(), "a different key") {
			t.Error(err)
		}
		r.Reset(b.Bytes())
	}); n > 1000 {
		t.Errorf("%.0f allocations", n)
	}
}

func TestDamage(t *testing.T) {
	key := fleetkey.New()
	m := memory.New()
	m.Bans.Add(client("192.0.2.1"), memory.BanRequest{Ladder: []time.Duration{time.Hour}, Rule: "harvest"}, noon.UnixMicro())
	file := export(t, m, Exporter{Host: "mx1", Key: key})
	if _, err := Read(bytes.NewReader(file), key, ""); err != nil {
		t.Fatal(err)
	}
	for i := range file {
		damaged := slices.Clone(file)
		if damaged[i] ^= 1; string(damaged[i]) == "\n" {
			continue
		}
		if f, err := Read(bytes.NewReader(damaged), key, ""); err == nil && i < len(file)-1 {
			t.Fatalf("byte %d may be changed: %+v", i, f)
		}
		if _, err := Read(bytes.NewReader(file[:i]), key, ""); err == nil {
			t.Fatalf("%d bytes are enough", i)
		}
	}
	for text, want := range map[string]string{
		"": "line 1: the file ends early", "{}\n": "line 1: not a file of", `{"schema":1,"host":"a b"}` + "\n": "line 1: not a file of",
		strings.Repeat("x", 2*maxLine): "line 1: longer than", string(file) + "x": "lines after the end",
	} {
		if _, err := Read(strings.NewReader(text), key, ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	key := fleetkey.Key{}
	f.Add([]byte(`{"schema":1,"host":"mx1","time":"2026-12-01T12:00:00Z"}` + "\n" + `{"table":"bans","key":"IMAAAgE=","value":"AA=="}` + "\n" + `{"rows":1,"code":"00"}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if file, err := Read(bytes.NewReader(b), key, key.Fingerprint()); err == nil {
			_, _, _ = Merge("mx2", share.DefaultLimits(), []*File{file}, noon)
		}
	})
}

// TestFriendsOldFile checks that an old file from a friend does not restore a ban that the friend
// has ended. The unban must not affect bans by other hosts or later bans by the friend.
func TestFriendsOldFile(t *testing.T) {
	key := fleetkey.New()
	for _, prefix := range []string{"192.0.2.1/32", "192.0.2.0/24"} {
		p := netip.MustParsePrefix(prefix)
		here, friend, fleet := memory.New(), memory.New(), memory.New()
		file := func(m *memory.Memory, host string) []byte { return export(t, m, Exporter{Host: host, Key: key}) }
		take := func(data []byte, friendly bool) {
			t.Helper()
			f, err := Read(bytes.NewReader(data), key, "")
			if err == nil && friendly {
				err = f.Befriend()
			}
			if err != nil {
				t.Fatal(err)
			}
			rows, _, err := Merge("mx1", share.DefaultLimits(), []*File{f}, noon.Add(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := here.Incoming(rows, 0, noon.Add(time.Hour).UnixMicro()); err != nil {
				t.Fatal(err)
			}
		}
		check := func(what, origin string) {
			t.Helper()
			if b, ok := here.Bans.Enforced(p, noon.Add(time.Hour).UnixMicro()); ok != (origin != "") || ok && b.Origin != origin {
				t.Errorf("%s, %s: %v %+v", prefix, what, ok, b)
			}
		}
		friend.Bans.AddPrefix(p, 24*time.Hour, "x", noon.UnixMicro())
		banned := file(friend, "pal")
		friend.Bans.Revoke(p, false, noon.Add(time.Minute).UnixMicro())
		unbanned := file(friend, "pal")
		friend.Bans.AddPrefix(p, 24*time.Hour, "x", noon.Add(2*time.Minute).UnixMicro())
		again := file(friend, "pal")
		fleet.Bans.AddPrefix(p, 12*time.Hour, "y", noon.UnixMicro())

		take(banned, true)
		check("a ban", "friend.pal")
		take(unbanned, true)
		check("an unban", "")
		take(banned, true)
		check("the old file", "")
		take(again, true)
		check("a later ban", "friend.pal")
		take(unbanned, true)
		check("the old unban", "friend.pal")
		friend.Bans.Revoke(p, false, noon.Add(3*time.Minute).UnixMicro())
		take(file(friend, "pal"), true)
		check("another unban", "")
		take(file(fleet, "mx2"), false)
		check("a ban of another host", "mx2")
		take(file(friend, "pal"), true)
		check("the unban after a ban of another host", "mx2")
	}
}

// TestStandingOfEachFile checks two files that are imported together. The standing from each host
// must remain separate, so that dropping one host does not remove the standing from the other.
func TestStandingOfEachFile(t *testing.T) {
	key, yesterday := fleetkey.New(), noon.Add(-24*time.Hour).UnixMicro()
	var files []*File
	for _, host := range []string{"mx2", "mx3"} {
		m := memory.New()
		m.UseKey(key.State())
		m.Peers.Delivered(client("192.0.2.2"), memory.Delivery{Messages: 1}, yesterday)
		f, err := Read(bytes.NewReader(export(t, m, Exporter{Host: host, Key: key, Names: true})), key, key.Fingerprint())
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	rows, _, err := Merge("mx1", share.DefaultLimits(), files, noon)
	if err != nil {
		t.Fatal(err)
	}
	m := memory.New()
	m.UseKey(key.State())
	if _, err := m.Incoming(rows, 0, noon.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"mx3", "mx2"} {
		if s := m.Peers.Standing(client("192.0.2.2"), noon.UnixMicro()); s.Origin == "" {
			t.Errorf("before dropping %s: %+v", host, s)
		}
		m.Disown(host)
	}
	if s := m.Peers.Standing(client("192.0.2.2"), noon.UnixMicro()); s.Origin != "" {
		t.Errorf("%+v", s)
	}
}

// first returns the first ban, if any.
func first(list []memory.Ban) (b memory.Ban, ok bool) {
	if len(list) == 0 {
		return b, false
	}
	return list[0], true
}
