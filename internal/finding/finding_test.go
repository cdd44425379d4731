package finding

import (
	"net/netip"
	"strings"
	"testing"

	"scanwatch/filter/lookup"
	"scanwatch/store"
)

func TestNew(t *testing.T) {
	lists, err := lookup.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	row := lists.Rows()[0]
	r := &store.Record{Src: netip.MustParseAddrPort("192.0.2.7:25"), RDNS: []byte("host\x1b.example.net")}
	b := func(s string) []byte { return []byte(s) }
	for _, c := range []struct {
		name string
		step store.Step
		want string
	}{
		{"a row of a list", store.Step{Text: b(row.Evidence), By: b("helo"), Arg: b("x"), Match: b(row.Value), Org: b(row.Org)}, "list " + row.List},
		{"the name of the client", store.Step{Text: b("scanner"), By: b("rdns"), Confidence: b("low")}, `proof   host\x1b.example.net`},
		{"the address of the client", store.Step{Text: b("scanner"), By: b("cidr")}, "proof   192.0.2.7"},
		{"a match without a row", store.Step{Text: b("no-mail"), By: b("ending"), Match: b("greeting")}, "match   greeting"},
	} {
		f := New(lists, r, &c.step)
		var out strings.Builder
		if f.Text(&out); !strings.Contains(out.String(), c.want) {
			t.Errorf("%s: no %q in\n%s", c.name, c.want, out.String())
		}
	}
}
