package rules

import "testing"

// TestRecorded: a condition that looks at what a record has the hash of cannot tell;
// one that looks at what is in clear can.
func TestRecorded(t *testing.T) {
	const someone, strict = "hash:0123456789abcdef@example.org", "hash:0123456789abcdef@hash:0123456789abcdef"
	for _, c := range []struct {
		cond, addr string
		want       Truth
	}{
		{`"john@example.org"`, someone, Unknown},
		{`"john@example.net"`, someone, No},
		{`"postmaster@example.org"`, someone, No},
		{`"john@example.org"`, "john@example.org", Yes},
		{`"john@example.org"`, "jane@example.org", No},
		{`"@example.org"`, someone, Yes},
		{`"example.net"`, someone, No},
		{`".org"`, someone, Yes},
		{`"postmaster@"`, someone, No},
		{`"john@"`, someone, Unknown},
		{`"j*@example.org"`, someone, Unknown},
		{`/^j/`, someone, Unknown},
		{`<names>`, someone, Unknown},
		{`"<>"`, "", Yes},
		{`"@example.org"`, strict, Unknown},
		{`"john@"`, strict, Unknown},
		{`"postmaster@"`, "postmaster@hash:0123456789abcdef", Yes},
		{`"john@"`, "postmaster@hash:0123456789abcdef", No},
	} {
		text := "table <names> { \"john@example.org\" }\nrule r phase rcpt-to match rcpt-to " + c.cond + " reject\n"
		tree, err := Parse("x", func(string) ([]byte, error) { return []byte(text), nil })
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := Compile(tree, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, recorded := range []bool{true, false} {
			_, traces := p.Explain(&Facts{Phase: RcptTo, RcptTo: []byte(c.addr), Recorded: recorded})
			got, want := traces[0].Conds[0], c.want
			if !recorded && want == Unknown {
				want = No // what a client says is what it says
			}
			if got.Answer != want || got.Hashed != (want == Unknown) {
				t.Errorf("rcpt-to %s for %q, recorded %v: got %v, hashed %v; want %v", c.cond, c.addr, recorded, got.Answer, got.Hashed, want)
			}
		}
		if !p.Needs().Names {
			t.Errorf("rcpt-to %s needs no names", c.cond)
		}
	}
}
