package feed

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/internal/text"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestSamples parses each file in testdata. TestSamples compares the detected format and the result
// with a golden file.
func TestSamples(t *testing.T) {
	files, err := filepath.Glob("testdata/samples/*")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Parse(bytes.NewReader(content), "")
			got := describe(r, err)
			if r != nil {
				seen[r.Format] = true
			}
			golden := filepath.Join("testdata/golden", filepath.Base(file)+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant (rewrite with -update)\n%s", got, want)
			}
		})
	}
	for _, f := range Formats() {
		if f.sniff != nil && !seen[f.Name] {
			t.Errorf("no sample of format %s", f.Name)
		}
	}
}

func describe(r *Result, err error) string {
	var b strings.Builder
	if err != nil {
		fmt.Fprintf(&b, "error: %v\n", err)
	}
	if r == nil {
		return b.String()
	}
	fmt.Fprintf(&b, "format: %s\n", r.Format)
	if !r.Date.IsZero() {
		fmt.Fprintf(&b, "date: %s\n", r.Date.Format(time.RFC3339))
	}
	if r.Notice != "" {
		fmt.Fprintf(&b, "notice: %s\n", r.Notice)
	}
	if r.LeftOut > 0 {
		fmt.Fprintf(&b, "omitted: %d\n", r.LeftOut)
	}
	for _, p := range r.Prefixes {
		fmt.Fprintf(&b, "prefix: %s\n", p)
	}
	for _, n := range r.ASNs {
		fmt.Fprintf(&b, "asn: %d\n", n)
	}
	for _, n := range r.Names {
		fmt.Fprintf(&b, "name: %s\n", n)
	}
	for _, p := range r.Refused.First {
		fmt.Fprintf(&b, "refused: %s\n", p)
	}
	for _, p := range r.Warnings.First {
		fmt.Fprintf(&b, "warning: %s\n", p)
	}
	return b.String()
}

func TestParse(t *testing.T) {
	const aws = `{"createDate":"2026-01-01-00-00-00","prefixes":[
 {"ip_prefix":"192.0.2.0/24","service":"EC2"},{"ip_prefix":"198.51.100.0/24","service":"AMAZON"}]}`
	const google = `{"prefixes":[{"ipv4Prefix":"192.0.2.0/24","service":"Google Cloud"},{"ipv4Prefix":"203.0.113.0/24"}]}`
	const meta = `{"verifiable_password_authentication":true,"hooks":["192.0.2.0/24"],
 "web":{"v4":["198.51.100.0/24"],"v6":["2001:db8::/32"]},"domains":{"website":["*.example.org"]}}`
	tests := []struct {
		name, format, text string
		want               string // result of describe in one line; "; " separates the parts
	}{
		{"aws by default", "aws", aws, "format: aws; date: 2026-01-01T00:00:00Z; omitted: 1; prefix: 192.0.2.0/24"},
		{"aws other service", "aws service AMAZON", aws, "format: aws; date: 2026-01-01T00:00:00Z; omitted: 1; prefix: 198.51.100.0/24"},
		{"aws all", "aws service all", aws, "format: aws; date: 2026-01-01T00:00:00Z; prefix: 192.0.2.0/24; prefix: 198.51.100.0/24"},
		{"aws unknown service", "aws service EC3", aws,
			`error: as aws: none of 2 entries has the service "EC3"; the values in the file are: AMAZON, EC2; format: aws; date: 2026-01-01T00:00:00Z; omitted: 2`},
		{"option of two words", "google service Google Cloud", google, "format: google; omitted: 1; prefix: 192.0.2.0/24"},
		{"json under a key", "json key hooks", meta, "format: json; omitted: 2; prefix: 192.0.2.0/24"},
		{"json under a key further out", "json key web", meta, "format: json; omitted: 1; prefix: 198.51.100.0/24; prefix: 2001:db8::/32"},
		{"json unknown key", "json key api", meta, `error: as json: none of 3 entries has the key "api"; the values in the file are: hooks, v4, v6; format: json; omitted: 3`},
		{"json cut short", "json", meta[:60], "error: as json: line 1: not JSON, or truncated: unexpected EOF; format: json"},
		{"aws cut short", "aws", aws[:60], "error: as aws: line 2: not JSON, or truncated: unexpected end of JSON input; format: aws"},
		{"aws of another shape", "aws", "{\n\"prefixes\":7}", `error: as aws: line 2: "prefixes" has the unexpected type number; format: aws`},
		{"unknown option", "aws region x", aws, `error: format aws may only be followed by "service" and a value, found "region x"`},
		{"option without value", "aws service", aws, `error: format aws may only be followed by "service" and a value, found "service"`},
		{"option of a format without", "plain service x", "192.0.2.1", `error: format plain has no option, found "service"`},

		{"names are not addresses", "blocklist-de", "192.0.2.1\n192.0.2.2\nexample.org\n", "format: blocklist-de; prefix: 192.0.2.1/32; prefix: 192.0.2.2/32; refused: line 3: example.org: not an address or prefix"},
		{"mostly no addresses", "mxroute", "192.0.2.1\nexample.org\nexample.net\n",
			"error: as mxroute: not a list of this format: 2 entries are invalid, 1 are valid; the first invalid entry: line 2: example.org: not an address or prefix; format: mxroute; prefix: 192.0.2.1/32; refused: line 2: example.org: not an address or prefix; refused: line 3: example.net: not an address or prefix"},
		{"text of an error", "", "Rate limit exceeded.\nTry again later.\n",
			"error: as plain: none of 2 entries is valid; the first: line 1: Rate limit exceeded.: not an address or AS number, and more than one word; format: plain; refused: line 1: Rate limit exceeded.: not an address or AS number, and more than one word; refused: line 2: Try again later.: not an address or AS number, and more than one word"},
		{"one word", "", "Forbidden", "format: plain; name: forbidden; warning: line 1: Forbidden: a name without a dot; it may be a greeting, or not an entry at all"},
		{"two addresses", "", "192.0.2.7, 192.0.2.9\n198.51.100.1 198.51.100.2 office\n",
			"format: plain; prefix: 192.0.2.7/32; prefix: 192.0.2.9/32; prefix: 198.51.100.1/32; prefix: 198.51.100.2/32"},
		{"two addresses on a later line", "", "192.0.2.1\n192.0.2.7, 192.0.2.9 home,192.0.2.0/25\n198.51.100.1 198.51.100.2\tAS64496\n",
			"format: plain; prefix: 192.0.2.1/32; prefix: 192.0.2.7/32; prefix: 192.0.2.9/32; prefix: 192.0.2.0/25; prefix: 198.51.100.1/32; prefix: 198.51.100.2/32; asn: 64496"},
		{"three addresses", "", "192.0.2.7 192.0.2.8 192.0.2.9\n", "format: plain; prefix: 192.0.2.7/32; prefix: 192.0.2.8/32; prefix: 192.0.2.9/32"},
		{"networks between commas", "", "192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24\n", "format: plain; prefix: 192.0.2.0/24; prefix: 198.51.100.0/24; prefix: 203.0.113.0/24"},
		{"columns of two addresses", "", "192.0.2.0,192.0.2.255,US\n198.51.100.1,,US\n", "format: csv; prefix: 198.51.100.1/32; refused: line 1: 192.0.2.0,192.0.2.255,US: more than one address; write a range as 192.0.2.1-192.0.2.9"},
		{"ranges", "", "192.0.2.10 - 192.0.2.13\n198.51.100.0-198.51.100.255 office\n2001:db8::1 - 2001:db8::2\n",
			"format: plain; prefix: 192.0.2.10/31; prefix: 192.0.2.12/31; prefix: 198.51.100.0/24; prefix: 2001:db8::1/128; prefix: 2001:db8::2/128"},
		{"ranges of a named format", "cins", "192.0.2.10 - 192.0.2.11, 192.0.2.1\n", "format: cins; prefix: 192.0.2.10/31; prefix: 192.0.2.1/32"},
		{"a range backwards", "", "192.0.2.1\n192.0.2.9-192.0.2.1\n", "format: plain; prefix: 192.0.2.1/32; refused: line 2: 192.0.2.9-192.0.2.1: not an address or prefix"},
		{"a wide range", "", "192.0.2.1\n8.0.0.0 - 9.255.255.255\n", "format: plain; prefix: 192.0.2.1/32; refused: line 2: 8.0.0.0 - 9.255.255.255: wider than /8; write smaller networks"},
		{"a typing error after an address", "", "192.0.2.1, 192.0.2.256\n192.0.2.3\n", "format: plain; prefix: 192.0.2.1/32; prefix: 192.0.2.3/32; refused: line 1: 192.0.2.256: not an address or prefix"},
		{"a typing error on a later line", "", "192.0.2.3\n192.0.2.1, 192.0.2.256\n", "format: plain; prefix: 192.0.2.3/32; prefix: 192.0.2.1/32; refused: line 2: 192.0.2.256: not an address or prefix"},
		{"an address in a remark", "", "192.0.2.3 replaces 192.0.2.1\n", "format: plain; prefix: 192.0.2.3/32; warning: line 1: 192.0.2.1: ignored, because it is part of a remark; write it on a separate line"},
		{"remarks and counts", "", "192.0.2.3 12\n192.0.2.4, office\n192.0.2.5\t3.5 of 10.0\n", "format: plain; prefix: 192.0.2.3/32; prefix: 192.0.2.4/32; prefix: 192.0.2.5/32"},
		{"wide networks", "", "8.0.0.0/8\n8.8.8.0/7\n2600::/12\n2a00::/19\n", "format: plain; prefix: 8.0.0.0/8; prefix: 2a00::/19; refused: line 2: 8.8.8.0/7: wider than /8; write smaller networks; refused: line 3: 2600::/12: wider than /19; write smaller networks"},
		{"mistyped address", "", "192.0.2.1\n192.0.2.256\n", "format: plain; prefix: 192.0.2.1/32; refused: line 2: 192.0.2.256: not an address or prefix"},
		{"only comments", "", "# nothing\n", "error: the file has no entries; format: plain; notice: nothing"},
		{"empty EDROP", "", "; Spamhaus EDROP List 2026/01/01 - merged\n", "format: spamhaus-drop; notice: Spamhaus EDROP List 2026/01/01 - merged; warning: the list is empty"},
		{"empty DROP", "", "; Spamhaus DROP List 2026/01/01\n", "error: the file has no entries; format: spamhaus-drop; notice: Spamhaus DROP List 2026/01/01"},
		{"DROP cut short", "", `{"cidr":"192.0.2.0/24","sblid":"SBL000001","rir":"arin"}` + "\n" + `{"cidr":"198.51`,
			`format: spamhaus-drop; prefix: 192.0.2.0/24; refused: line 2: {"cidr":"198.51: not a line with one JSON object; warning: no metadata line at the end; the file may be truncated`},
		{"DROP that lacks entries", "", `{"cidr":"192.0.2.0/24","sblid":"SBL000001"}` + "\n" + `{"type":"metadata","records":2}`,
			"format: spamhaus-drop; prefix: 192.0.2.0/24; warning: line 2: the metadata gives 2 entries, but the list has 1"},
		{"ASN-DROP with numbers that are none", "spamhaus-asndrop", `{"asn":64496}` + "\n" + `{"asn":-1}` + "\n" + `{"type":"metadata"}`,
			"format: spamhaus-asndrop; asn: 64496; refused: line 2: -1: not an AS number"},
		{"ASN-DROP text", "spamhaus-asndrop", "; ASN-DROP\nAS64496 ; ZZ | EXAMPLE\n", "format: spamhaus-asndrop; notice: ASN-DROP; asn: 64496"},
		{"AbuseIPDB plain", "abuseipdb", "192.0.2.30\n2001:db8::31\n", "format: abuseipdb; prefix: 192.0.2.30/32; prefix: 2001:db8::31/128"},
		{"geofeed of prefixes only", "digitalocean", "192.0.2.0/24\n", "format: digitalocean; prefix: 192.0.2.0/24"},
		{"csv with too few columns", "csv", "name,ip\na,192.0.2.1\nb\n", "format: csv; prefix: 192.0.2.1/32; refused: line 3: b: too few columns"},
		{"dshield without a mask", "dshield", "192.0.2.0\t192.0.2.255\t24\n198.51.100.0\n", "format: dshield; prefix: 192.0.2.0/24; refused: line 2: 198.51.100.0: start, end and mask length expected"},
		{"hostile text", "addresses", "192.0.2.1\n\x1b[2Jevil\n", `format: addresses; prefix: 192.0.2.1/32; refused: line 2: \x1b[2Jevil: not an address or prefix`},
		{"hostile notice", "addresses", "# \x1b]0;evil\x07\n192.0.2.1\n", `format: addresses; notice: \x1b]0;evil\x07; prefix: 192.0.2.1/32`},
		{"long line", "addresses", "192.0.2.1\n" + strings.Repeat("a", MaxLine+1), "format: addresses; prefix: 192.0.2.1/32; refused: line 2: " + strings.Repeat("a", 80) + "...: line of more than 4096 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Parse(strings.NewReader(tt.text), tt.format)
			got := strings.ReplaceAll(strings.TrimSuffix(describe(r, err), "\n"), "\n", "; ")
			if got != tt.want {
				t.Errorf("\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestParseRefusesFiles(t *testing.T) {
	tests := []struct{ name, format, text, want string }{
		{"empty", "", "", "no entries"},
		{"blank", "", " \r\n\n", "no entries"},
		{"mark only", "", "\ufeff", "no entries"},
		{"html", "", "\ufeff \n<!DOCTYPE html><html>", "web page"},
		{"html under a name", "mxroute", "<html>", "web page"},
		{"gzip", "", "\x1f\x8b\x08\x00", "compressed"},
		{"zip", "aws", "PK\x03\x04", "compressed"},
		{"utf-16", "", "\xff\xfe1\x00", "UTF-16"},
		{"binary", "", "1.2\x00\x01", "binary"},
		{"unknown format", "spamhouse", "192.0.2.1", `unknown format "spamhouse"; the formats are: spamhaus-drop`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(tt.text), tt.format)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestParseReadError(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Parse(io.MultiReader(strings.NewReader("192.0.2.1\n"), errReader{broken}), ""); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestParseLimits(t *testing.T) {
	// repeat returns a reader that repeats a line until there are at least size bytes.
	repeat := func(line string, size int) io.Reader {
		return strings.NewReader(strings.Repeat(line, size/len(line)+1))
	}
	if _, err := Parse(repeat("192.0.2.1\n", MaxBytes), ""); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("error %v", err)
	}
	if _, err := Parse(repeat("8.8.8.8\n", 8*MaxEntries), ""); err == nil || !strings.Contains(err.Error(), "more than 1048576 entries") {
		t.Errorf("error %v", err)
	}
	r, err := Parse(strings.NewReader("192.0.2.1\n"+strings.Repeat("10.0.0.1\n", 1000)), "")
	if err != nil || r.Refused.Total != 1000 || len(r.Refused.First) != maxProblems {
		t.Errorf("%d of %d problems kept, error %v", len(r.Refused.First), r.Refused.Total, err)
	}
}

func TestForbidden(t *testing.T) {
	tests := []struct{ prefix, want string }{
		{"0.0.0.0/0", "the default route: it covers every address"},
		{"::/0", "the default route: it covers every address"},
		{"10.1.2.0/24", "private address space"},
		{"100.64.1.1/32", "private (carrier NAT) address space"},
		{"127.0.0.1/32", "loopback address space"},
		{"169.254.0.0/16", "link-local address space"},
		{"172.16.0.0/12", "private address space"},
		{"172.32.0.0/12", ""},
		{"192.168.1.1/32", "private address space"},
		{"192.0.0.0/8", "covers reserved address space, 192.0.0.0/24"},
		{"0.0.0.0/1", "covers reserved address space, 0.0.0.0/8"},
		{"224.0.0.1/32", "multicast address space"},
		{"255.255.255.255/32", "reserved address space"},
		{"192.0.2.0/24", ""},
		{"2001:db8::/32", ""},
		{"2000::/3", ""},
		{"2000::/2", "covers loopback address space, ::1/128"},
		{"::1/128", "loopback address space"},
		{"fd00::/8", "private address space"},
		{"fe80::1/128", "link-local address space"},
		{"ff02::1/128", "multicast address space"},
		{"4000::/16", "reserved address space"},
		{"64:ff9b::/96", "reserved address space"},
		{"8000::/1", "covers private address space, fc00::/7"},
	}
	for _, tt := range tests {
		t.Run(tt.prefix, func(t *testing.T) {
			if got := Forbidden(netip.MustParsePrefix(tt.prefix).Masked()); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestParseExempt checks that local networks are allowed in a list of exempt hosts.
func TestParseExempt(t *testing.T) {
	const list = "10.0.0.0/8\n192.168.1.7\nfc00::/7\n127.0.0.1\n100.64.0.0/10\n0.0.0.0/0\n224.0.0.1\n"
	r, err := ParseExempt(strings.NewReader(list), "")
	if err != nil || len(r.Prefixes) != 5 || r.Refused.Total != 2 {
		t.Errorf("%v, %s", err, describe(r, nil))
	}
	if r, err := Parse(strings.NewReader(list+"192.0.2.1\n"), ""); err != nil || r.Refused.Total != 7 {
		t.Errorf("%v, %s", err, describe(r, nil))
	}
}

func TestCheck(t *testing.T) {
	for _, format := range []string{"", " ", "plain", "aws", "aws service EC2", "azure tag AzureCloud.westeurope"} {
		if err := Check(format); err != nil {
			t.Errorf("%q: %v", format, err)
		}
	}
	for _, format := range []string{"x", "aws EC2", "plain x"} {
		if err := Check(format); err == nil {
			t.Errorf("%q is accepted", format)
		}
	}
}

func TestFormatsAreDescribed(t *testing.T) {
	names := make(map[string]bool)
	for _, f := range Formats() {
		if f.Name == "" || f.Help == "" || f.parse == nil || names[f.Name] || (f.Option == "") != (f.Default == "") {
			t.Errorf("format %+v", f.Name)
		}
		names[f.Name] = true
	}
}

// FuzzParse checks that the result is consistent for any file.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/samples/*")
	if err != nil {
		f.Fatal(err)
	}
	for i, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content, uint8(0))
		f.Add(content, uint8(i+1))
	}
	f.Fuzz(func(t *testing.T, content []byte, which uint8) {
		format := ""
		if n := int(which) % (len(formats) + 1); n > 0 {
			format = formats[n-1].Name
		}
		r, err := Parse(bytes.NewReader(content), format)
		if r == nil {
			if err == nil {
				t.Error("neither a result nor an error")
			}
			return
		}
		for _, p := range r.Prefixes {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || Forbidden(p) != "" {
				t.Errorf("prefix %s", p)
			}
		}
		var names lookup.Names[bool]
		for _, name := range r.Names {
			if err := names.Add(name, true); err != nil {
				t.Errorf("name %q: %v", name, err)
			}
		}
		for _, list := range []Problems{r.Refused, r.Warnings} {
			if len(list.First) > list.Total || len(list.First) > maxProblems {
				t.Errorf("%d of %d problems", len(list.First), list.Total)
			}
			for _, p := range list.First {
				if strings.ContainsFunc(p.String(), func(r rune) bool { return !text.Visible(r) }) {
					t.Errorf("problem %q is not printable", p)
				}
			}
		}
		if err == nil && r.Len() == 0 && r.Format != "spamhaus-drop" {
			t.Error("no entries and no error")
		}
	})
}

func BenchmarkParse(b *testing.B) {
	build := func(line func(i int, addr string) string) []byte {
		var content bytes.Buffer
		for i := range 100_000 {
			content.WriteString(line(i, netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 1}).String()))
		}
		return content.Bytes()
	}
	aws := append(build(func(i int, addr string) string {
		start := ",\n"
		if i == 0 {
			start = `{"prefixes":[`
		}
		return start + `{"ip_prefix":"` + addr + `/32","region":"xx-test-1","service":"EC2"}`
	}), "]}"...)
	for _, bench := range []struct {
		format  string
		content []byte
	}{
		{"plain", build(func(_ int, addr string) string { return addr + "\n" })},
		{"spamhaus-drop", build(func(_ int, addr string) string { return `{"cidr":"` + addr + `/32","sblid":"SBL000001"}` + "\n" })},
		{"geofeed", build(func(_ int, addr string) string { return addr + "/32,ZZ,ZZ-01,Example City,\n" })},
		{"aws", aws},
		{"json", aws},
	} {
		b.Run(bench.format, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bench.content)))
			for b.Loop() {
				r, err := Parse(bytes.NewReader(bench.content), bench.format)
				if err != nil || len(r.Prefixes) != 100_000 {
					b.Fatal(err, len(r.Prefixes))
				}
			}
		})
	}
}
