package sharing

import (
	"strings"
	"testing"
)

// TestReplies checks that replies of any structure are accepted, even if they arrive in several
// parts. Replies that announce too much data must be rejected.
func TestReplies(t *testing.T) {
	good := "+OK\r\n-ERR x\r\n:7\r\n_\r\n$-1\r\n*-1\r\n*0\r\n$0\r\n\r\n$5\r\na\r\nb\n\r\n#t\r\n,1.5\r\n" +
		"%1\r\n$1\r\nk\r\n*2\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$4\r\nrows\r\n$2\r\n*9\r\n~1\r\n:1\r\n=5\r\ntxt:x\r\n>2\r\n+a\r\n+b\r\n"
	for size := 1; size <= len(good); size++ {
		var r replies
		for range 3 {
			for rest := good; rest != ""; rest = rest[min(size, len(rest)):] {
				if err := r.add([]byte(rest[:min(size, len(rest))])); err != nil {
					t.Fatalf("parts of %d bytes: %v before %q", size, err, rest)
				}
			}
			if r.skip != 0 || len(r.open) != 0 || len(r.line) != 0 || r.bytes != 0 || r.elements != 0 {
				t.Fatalf("parts of %d bytes: %+v", size, r)
			}
		}
	}
	for _, bad := range []string{
		"*2147483647\r\n", "*9223372036854775807\r\n", "%600000\r\n", "$2000000000\r\n", "$?\r\n", "*?\r\n", "|1\r\n", "\r\n", "$-2\r\n", "$x\r\n",
		strings.Repeat("*1\r\n", 20), strings.Repeat("*2\r\n*600000\r\n", 2), "+" + strings.Repeat("x", maxHeader+1),
		"*3\r\n$20000000\r\n" + strings.Repeat("x", 20000000) + "\r\n$20000000\r\n",
	} {
		var r replies
		if r.add([]byte(bad)) == nil {
			t.Errorf("%.40q passes", bad)
		}
	}
	var r replies
	for range 3 { // the limits apply to each reply separately
		if err := r.add([]byte("*600000\r\n" + strings.Repeat(":1\r\n", 600000))); err != nil {
			t.Fatal(err)
		}
	}
}
