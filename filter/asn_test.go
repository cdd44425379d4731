//go:build !(386 || arm || mips || mipsle)

// The package that writes test databases does not compile on systems with 32-bit integers.

package filter_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"scanwatch/filter"
	"scanwatch/filter/events"
	"scanwatch/filter/lookup"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/tests/simulate"
)

// TestShippedASN checks that the AS numbers of rented hosts are known without a database. For
// addresses in the operator's database, the database takes precedence.
func TestShippedASN(t *testing.T) {
	const rented, moved = "3.131.215.38", "3.131.216.1" // addresses of Amazon
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "GeoLite2-ASN"})
	if err != nil {
		t.Fatal(err)
	}
	_, network, _ := net.ParseCIDR("3.131.216.0/24")
	if err := w.Insert(network, mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(64500)}); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "asn.mmdb")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteTo(out); err != nil || out.Close() != nil {
		t.Fatal(err)
	}
	database := lookup.NewOrigins(file)
	if _, err := database.Refresh(); err != nil {
		t.Fatal(err)
	}
	p := policy(t, "mode observe\nrule a observe phase rcpt-to match asn 64496 junk\n")
	for _, tt := range []struct {
		name, src string
		use       *filter.Settings
		want      string
	}{
		{"no policy", rented, nil, "AS16509"},
		{"no database", rented, &filter.Settings{Policy: p}, "AS16509"},
		{"no answer of the database", rented, &filter.Settings{Policy: p, ASN: database}, "AS16509"},
		{"answer of the database", moved, &filter.Settings{Policy: p, ASN: database}, ""},
		{"another network", "192.0.2.9", &filter.Settings{Policy: p}, ""},
	} {
		proof := ""
		table := simulate.NewFilter(filter.Options{
			Record: func(time.Time, uint64, []byte) {},
			Log:    func([]byte) {},
			Lists:  func() *lookup.Lists { return lists },
			Watch: func(e *events.Event) {
				if e.Evidence == rules.Cloud.String() {
					proof = e.Proof
				}
			},
		})
		table.Use(tt.use)
		in := "report|0.7|1795219327.000001|smtp-in|link-connect|00000000000000aa|<unknown>|fail|" + tt.src + ":4000|192.0.2.25:25\n"
		if err := smtpd.Serve(strings.NewReader(in), new(strings.Builder), table, smtpd.Options{}); err != nil {
			t.Fatal(err)
		}
		table.Stop()
		if proof != tt.want {
			t.Errorf("%s: the evidence cloud has the proof %q, want %q", tt.name, proof, tt.want)
		}
	}
}
