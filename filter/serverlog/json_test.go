package serverlog

import (
	"encoding/json"
	"maps"
	"testing"
)

// TestObject checks how the members of an object are read. TestObject also checks that an
// incomplete object is detected.
func TestObject(t *testing.T) {
	for text, ok := range map[string]bool{
		`{}`: true, ` { "a" : 1 , "b":"x\"}\\" } `: true, `{"a":{"b":[1,{"c":"]"}]},"d":null}`: true, `{"a":-1.5e3,"b":true}`: true,
		``: false, `{`: false, `{"a"`: false, `{"a":`: false, `{"a":1`: false, `{"a":"x}`: false, `{"a":1}x`: false, `{"a" 1}`: false, `{a:1}`: false, `[]`: false, `{"a":1,}`: false, `{"a":1 "b":2}`: false,
	} {
		got := map[string]string{}
		if complete := object([]byte(text), func(key, value []byte) { got[string(key)] = string(value) }); complete != ok {
			t.Errorf("%s: complete %t", text, complete)
		}
		if !ok {
			continue
		}
		var values map[string]json.RawMessage
		if err := json.Unmarshal([]byte(text), &values); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for k, v := range values {
			want[k] = string(v)
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if s := str([]byte(`"a\u0000\"b"`)); s != "a\x00\"b" {
		t.Errorf("%q", s)
	}
}
