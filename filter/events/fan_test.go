package events

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// sees returns one word for each event in the queue of a watcher.
func sees(t *testing.T, w *Watcher) (words []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		lines, err := w.Next(ctx, nil)
		if err != nil {
			return words
		}
		for line := range bytes.Lines(lines) {
			e, missing, err := Decode(line)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if missing > 0 {
				words = append(words, fmt.Sprint(e.Event, missing))
			} else {
				words = append(words, e.Event)
			}
		}
	}
}

// TestFanChoice checks which events a watcher receives.
func TestFanChoice(t *testing.T) {
	scan := netip.MustParseAddr("192.0.2.1")
	six := netip.MustParseAddr("2001:db8::7")
	all := []Event{
		{Event: "a", Session: 1, Src: scan, Evidence: "cloud"},
		{Event: "b", Session: 1, Src: scan, Evidence: "scanner"},
		{Event: "c", Session: 1, Src: scan, Rule: "x"},
		{Event: "d", Session: 2, Src: six, Rule: "x"},
		{Event: "e", Prefix: "192.0.2.0/25"},
		{Event: "f", Prefix: "bogus"},
		{Event: "g", Session: 3}, // a session over the local socket
		{Event: "h", Session: 1, Src: netip.MustParseAddr("::ffff:192.0.2.1"), Evidence: "cloud"},
	}
	for _, c := range []struct {
		name, evidence, src, want string
	}{
		{"all", "", "", "a b c d e f g h"},
		{"scanners and their verdicts", "scanner", "", "b c"},
		{"a network", "", "192.0.2.0/24", "a b c e h"},
		{"an address", "", "192.0.2.1/32", "a b c e h"},
		{"another network", "", "2001:db8::/32", "d"},
		{"both", "cloud", "192.0.2.0/24", "a c h"},
		{"nothing", "flood", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var f Fan
			choice := Choice{Evidence: c.evidence}
			if c.src != "" {
				choice.Src = netip.MustParsePrefix(c.src)
			}
			w, err := f.Watch(choice)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			for i := range all {
				f.Send(&all[i])
			}
			if got := strings.Join(sees(t, w), " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestFanSlowWatcher checks that the queue of a slow watcher is limited. The watcher must receive
// the number of events that it has missed. Other watchers must miss none.
func TestFanSlowWatcher(t *testing.T) {
	var f Fan
	slow, _ := f.Watch(Choice{})
	defer slow.Close()
	fast, _ := f.Watch(Choice{})
	defer fast.Close()
	big := Event{Event: "big", Proof: strings.Repeat("x", maxValue)}
	const n = 1000
	got := 0
	for range n {
		f.Send(&big)
		got += len(sees(t, fast))
	}
	if got != n {
		t.Errorf("the fast watcher received %d of %d", got, n)
	}
	if len(slow.queue) > maxQueue {
		t.Errorf("%d bytes in the queue", len(slow.queue))
	}
	words := sees(t, slow)
	kept := len(words) - 1
	if kept < 10 || words[kept] != fmt.Sprint(dropped, n-kept) {
		t.Errorf("the slow watcher received %d events, then %v", kept, words[kept])
	}
	f.Send(&Event{Event: "next"})
	if words := sees(t, slow); !reflect.DeepEqual(words, []string{"next"}) {
		t.Errorf("then %q", words)
	}
}

// TestFanWatchers checks the limit on the number of watchers.
func TestFanWatchers(t *testing.T) {
	var f Fan
	var all []*Watcher
	for range MaxWatchers {
		w, err := f.Watch(Choice{})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	if _, err := f.Watch(Choice{}); !errors.Is(err, ErrWatchers) {
		t.Errorf("one too many: %v", err)
	}
	all[0].Close()
	all[0].Close()
	if w, err := f.Watch(Choice{}); err != nil {
		t.Error(err)
	} else {
		w.Close()
	}
	for _, w := range all[1:] {
		w.Close()
	}
	if f.watching.Load() != 0 {
		t.Errorf("%d watchers remain", f.watching.Load())
	}
}

// TestDecode checks that Decode returns the event that was encoded.
func TestDecode(t *testing.T) {
	filled := Event{}
	v := reflect.ValueOf(&filled).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name + " \u202e\x00\"")
		case reflect.Slice:
			f.SetBytes([]byte(v.Type().Field(i).Name + "\r\n"))
		}
	}
	filled.Session, filled.Src = 0xfedcba9876543210, netip.MustParseAddr("2001:db8::1")
	at := sample().Time.Truncate(time.Microsecond) // times in a line have this precision
	filled.Time, filled.Until = at, at
	local := Event{Event: "x", Session: 1, Time: at, RDNS: []byte{}, Helo: []byte{}}
	for _, e := range []Event{filled, local} {
		got, n, err := Decode(appendEvent(nil, &e))
		if err != nil || n != 0 || !reflect.DeepEqual(got, e) {
			t.Errorf("got %+v, %d, %v\nwant %+v", got, n, err, e)
		}
	}
	if e, n, err := Decode(appendDropped(nil, at, 7)); err != nil || n != 7 || e.Event != dropped {
		t.Errorf("%+v, %d, %v", e, n, err)
	}
	for _, bad := range []string{"", "{", `{"session":"x"}`, `{"src":"x"}`, `{"time":"x"}`} {
		if _, _, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%q decodes without error", bad)
		}
	}
}

func BenchmarkFanSend(b *testing.B) {
	for _, watchers := range []int{0, 1, MaxWatchers} {
		b.Run(fmt.Sprint(watchers), func(b *testing.B) {
			var f Fan
			for range watchers {
				w, err := f.Watch(Choice{})
				if err != nil {
					b.Fatal(err)
				}
				defer w.Close()
			}
			e := sample()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				f.Send(e)
				if i%100 == 0 { // empty the queues before they are full
					for _, w := range f.watchers {
						w.queue = w.queue[:0]
					}
				}
			}
		})
	}
}

// FuzzDecode checks that a decoded event stays the same if it is encoded and decoded again.
func FuzzDecode(f *testing.F) {
	f.Add(appendEvent(nil, sample()))
	f.Add(appendDropped(nil, sample().Time, 7))
	f.Add([]byte(`{"src":"fe80::1%x","session":"1","until":"2026-01-01T00:00:00+01:00"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, _, err := Decode(line)
		if err != nil {
			return
		}
		if _, _, err := Decode(appendEvent(nil, &e)); err != nil {
			t.Fatalf("%q: %v", appendEvent(nil, &e), err)
		}
	})
}
