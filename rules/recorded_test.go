package rules

import (
	"testing"

	"scanwatch/internal/smtp"
)

// TestRecorded checks that a condition is unknown if it depends on a hashed local part. A condition
// that depends on a domain or a role account must be known.
func TestRecorded(t *testing.T) {
	const hashed = "hash:0123456789abcdef@example.org"
	for _, c := range []struct {
		cond, addr string
		want       Truth
	}{
		{`"john@example.org"`, hashed, Unknown},
		{`"john@example.net"`, hashed, No},
		{`"postmaster@example.org"`, hashed, No},
		{`"john@example.org"`, "john@example.org", Yes},
		{`"john@example.org"`, "jane@example.org", No},
		{`"@example.org"`, hashed, Yes},
		{`"example.net"`, hashed, No},
		{`".org"`, hashed, Yes},
		{`"postmaster@"`, hashed, No},
		{`"john@"`, hashed, Unknown},
		{`"j*@example.org"`, hashed, Unknown},
		{`/^j/`, hashed, Unknown},
		{`<names>`, hashed, Unknown},
		{`"<>"`, "", Yes},
		{`"john@"`, "hash:0123456789abcdef", Unknown},
		{`"john@"`, "postmaster@example.org", No},
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
			_, traces := p.Explain(&Facts{Phase: smtp.PhaseRcptTo, RcptTo: []byte(c.addr), Recorded: recorded})
			got, want := traces[0].Conds[0], c.want
			if !recorded && want == Unknown {
				want = No // text may look like a hash even if it does not come from a record
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
