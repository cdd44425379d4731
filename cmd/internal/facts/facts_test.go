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
	"scanwatch/internal/kv"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

func client(addr string) *memory.Client { return &memory.Client{Addr: netip.MustParseAddr(addr)} }

// export returns a file with the rows of m.
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
	all := export(t, m, Exporter{Host: "mx1", Key: key, Names: true})
	if !bytes.Contains(all, []byte(`"ban":{"prefix":"192.0.2.1/32","since":"2026-12-01T12:00:00.000000Z","until":"2026-12-01T13:00:00.000000Z","rule":"harvest"}`)) || bytes.Contains(all, []byte("joe")) {
		t.Fatalf("%s", all)
	}
	f, err := Read(bytes.NewReader(all), key, key.Fingerprint())
	if err != nil || f.Host != "mx1" || len(f.Rows) != 2 || f.Omitted != 0 {
		t.Fatalf("%+v %v", f, err)
	}
	rows, hosts, err := Merge("mx2", share.DefaultLimits(), slices.Values([]kv.Entry(nil)), []*File{f}, noon)
	if err != nil || len(rows) != 2 || len(hosts) != 1 || hosts[0].Problem != "" {
		t.Fatal(rows, hosts, err)
	}
	other := memory.New()
	other.UseKey(key.State())
	if err := other.Incoming(rows, 0, noon.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if b, ok := other.Bans.Banned(client("192.0.2.1"), noon.UnixMicro()); !ok || b.Origin != "mx1" || !other.Recipients.Known([]byte("joe@example.org"), noon.UnixMicro()) {
		t.Fatal(b, ok)
	}
	if _, _, err := Merge("mx1", share.DefaultLimits(), slices.Values([]kv.Entry(nil)), []*File{f}, noon); err == nil {
		t.Error("a host believes another one with its name")
	}
	// Another operator has another key for names.
	if f, err := Read(bytes.NewReader(all), key, ""); err != nil || len(f.Rows) != 1 || f.Omitted != 1 {
		t.Errorf("%+v %v", f, err)
	}
	// A ban that starts in the second of an unban has ended.
	m.Bans.Revoke(netip.MustParsePrefix("192.0.2.1/32"), false, noon.UnixMicro())
	unban, err := Read(bytes.NewReader(export(t, m, Exporter{Host: "mx3", Key: key, Names: true})), key, "")
	if err != nil {
		t.Fatal(err)
	}
	rows, _, err = Merge("mx2", share.DefaultLimits(), slices.Values([]kv.Entry(nil)), []*File{f, unban}, noon)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Incoming(rows, 0, noon.UnixMicro()); err != nil {
		t.Fatal(err)
	}
	if b, ok := other.Bans.Enforced(netip.MustParsePrefix("192.0.2.1/32"), noon.UnixMicro()); ok {
		t.Error(b)
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
			_, _, _ = Merge("mx2", share.DefaultLimits(), slices.Values([]kv.Entry(nil)), []*File{file}, noon)
		}
	})
}
