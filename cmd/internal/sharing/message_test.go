package sharing

import (
	"encoding/binary"
	"errors"
	"reflect"
	"runtime"
	"testing"

	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/filter/share"
)

var rows = []share.Row{
	{Bucket: "bans", Key: "\x20\xc0\x00\x02\x01", Stamp: 1 << 60, Value: "value"},
	{Bucket: "peers", Key: "", Value: ""},
}

func TestMessage(t *testing.T) {
	key := fleetkey.New()
	sent := message{99, 7, rows}
	b := encode(key, "mx1", &sent)
	got, err := decode(key, "mx1", b)
	if err != nil || !reflect.DeepEqual(got, sent) {
		t.Fatal(got, err)
	}
	if _, err := decode(fleetkey.New(), "mx1", b); !errors.Is(err, errWrongKey) {
		t.Error("another key:", err)
	}
	if _, err := decode(key, "mx2", b); !errors.Is(err, errWrongKey) {
		t.Error("another host:", err)
	}
	for i := range b {
		b[i] ^= 1
		if _, err := decode(key, "mx1", b); err == nil {
			t.Fatalf("byte %d may be changed", i)
		}
		b[i] ^= 1
		if _, err := decode(key, "mx1", b[:i]); err == nil {
			t.Fatalf("%d bytes are enough", i)
		}
	}
}

// TestMessageNeedsLittleMemory checks that a message whose rows are empty or missing does not use much
// more memory than its own size.
func TestMessageNeedsLittleMemory(t *testing.T) {
	key := fleetkey.New()
	empty := encode(key, "mx1", &message{99, 7, make([]share.Row, (maxMessage-codeSize-16)/4)})
	claimed := append([]byte{99, 7}, binary.AppendUvarint(nil, maxMessage-codeSize-16)...)
	claimed = append(claimed, make([]byte, maxMessage-codeSize-16)...)
	sum := key.Sum(fleetkey.PurposeBatch, []byte("mx1"), claimed)
	for name, b := range map[string][]byte{"empty": empty, "missing": append(sum[:], claimed...)} {
		if len(b) < maxMessage/2 || len(b) > maxMessage {
			t.Fatalf("%s: %d bytes", name, len(b))
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := decode(key, "mx1", b)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, errInvalid) || n > maxMessage {
			t.Errorf("%s: %d bytes allocated for %d, error %v", name, n, len(b), err)
		}
	}
	if _, err := decode(key, "mx1", encode(key, "mx1", &message{99, 7, make([]share.Row, rowsPerMessage)})); err != nil {
		t.Errorf("the largest number of rows: %v", err)
	}
}

// FuzzDecode decodes messages with a valid code.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(encode(fleetkey.Key{}, "mx1", &message{99, 7, rows})[codeSize:])
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, body []byte) {
		sum := fleetkey.Key{}.Sum(fleetkey.PurposeBatch, []byte("mx1"), body)
		got, err := decode(fleetkey.Key{}, "mx1", append(sum[:], body...))
		if err != nil {
			if !errors.Is(err, errInvalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := decode(fleetkey.Key{}, "mx1", encode(fleetkey.Key{}, "mx1", &got)); err != nil || !reflect.DeepEqual(again, got) {
			t.Fatal(again, err)
		}
	})
}
