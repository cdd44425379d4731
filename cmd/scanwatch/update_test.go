package main

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"scanwatch/cmd/internal/fetch"
)

// An internet imitates all HTTPS servers. The internet is a proxy that answers each request itself,
// with certificates from its own authority.
type internet struct {
	authority string // file with the certificate
	proxy     *httptest.Server
	tls       *tls.Config // for all servers
	mu        sync.Mutex
	answers   map[string]http.HandlerFunc // by host and path
	asked     []string
}

func newInternet(t *testing.T) *internet {
	t.Helper()
	dir, _ := feedsConf(t, "")
	in := &internet{authority: filepath.Join(dir, "ca.pem"), answers: map[string]http.HandlerFunc{}}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	raw, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	err = errors.Join(err, os.WriteFile(in.authority, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	in.tls = &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{hello.ServerName}, IPAddresses: []net.IP{{127, 0, 0, 1}}, NotAfter: ca.NotAfter}
		raw, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
		return &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}, err
	}}
	in.proxy = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "only HTTPS", http.StatusForbidden)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		in.serve(tls.Server(conn, in.tls))
	}))
	t.Cleanup(in.proxy.Close)
	return in
}

// serve answers one request.
func (in *internet) serve(conn net.Conn) {
	defer conn.Close()
	r, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	in.mu.Lock()
	in.asked = append(in.asked, r.Host+r.URL.Path)
	answer := in.answers[r.Host+r.URL.Path]
	in.mu.Unlock()
	if answer == nil {
		answer = http.NotFound
	}
	w := httptest.NewRecorder()
	answer(w, r)
	_ = w.Result().Write(conn) // the client may have disconnected
}

func (in *internet) set(url string, answer http.HandlerFunc) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.answers[url] = answer
}

// scanwatch runs the program in a process that uses the proxy.
func (in *internet) scanwatch(t *testing.T, args ...string) (out, stderr string, status int) {
	t.Helper()
	cmd := in.command(t, args...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// command returns a command that runs the program with the proxy.
func (in *internet) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Args = append([]string{"scanwatch"}, args...)
	cmd.Env = append(os.Environ(), "HTTPS_PROXY="+in.proxy.URL, "SSL_CERT_FILE="+in.authority, "SSL_CERT_DIR=/nonexistent")
	return cmd
}

// says returns a handler that responds with text of known length.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		io.WriteString(w, text)
	}
}

// feedsConf returns a directory with a configuration.
func feedsConf(t *testing.T, text string) (dir, conf string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sw") // other users can enter it, unlike t.TempDir
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	conf = filepath.Join(dir, "scanwatch.conf")
	if err = errors.Join(err, os.WriteFile(conf, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir, conf
}

// TestUpdate checks the output and the exit status of each outcome.
func TestUpdate(t *testing.T) {
	in := newInternet(t)
	dir, conf := feedsConf(t, `table <a> file "a.txt" format addresses url "https://a.example/list"
table <b> { file "b1.txt" format plain url "https://b.example/1", file "b2.txt" format asn-list url "https://b.example/2" every 1h }
rule r phase connect match src <a> asn <b> disconnect
`)
	in.set("a.example/list", says("203.0.113.1\n203.0.113.2\n192.168.0.1\n"+strings.Repeat("# comment\n", 9)+"198.51.100.0/28\n198.51.100.16/28\n198.51.100.32/28\n198.51.100.64/28\n198.51.100.80/28\n198.51.100.96/28\n198.51.100.112/28\n198.51.100.128/28\n"))
	in.set("b.example/1", says("mail.example.net\n"))
	for _, c := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"update --dry-run a", 0, "a a.txt: updated, 10 entries, 10 added, 0 removed, 1 rejected\n", ""},
		{"update a", 0, "a a.txt: next request 2026-11-02 12:10\n", ""},
		{"update", 1, "a a.txt: updated, 10 entries, 10 added, 0 removed, 1 rejected\nb b1.txt: updated, 1 entry, 1 added, 0 removed\n",
			"scanwatch: b b2.txt: not downloaded: the server answers 404 Not Found\nscanwatch: 1 file not downloaded\n"},
		{"update", 1, "a a.txt: next request 2026-11-03 09:36\nb b1.txt: next request 2026-11-03 09:36\n",
			"scanwatch: b b2.txt: next request 2026-11-02 12:10, because: the server answers 404 Not Found\nscanwatch: no new version of 1 file since an error\n"},
		{"update -q", 0, "", ""}, // the error of the earlier run is not repeated
		{"update -q a", 0, "", ""},
		{"update c", 2, "", "scanwatch: update \"c\": the configuration has no such download; it has: a, b\n"},
	} {
		if strings.Contains(c.stdout, "b1.txt: updated") {
			later(t, filepath.Join(dir, "a.txt"))
		}
		out, stderr, status := in.scanwatch(t, append([]string{"-f", conf}, strings.Fields(c.args)...)...)
		if status != c.status || out != c.stdout || stderr != c.stderr {
			t.Errorf("%s: exit status %d\n%s%s\nwant %d\n%s%s", c.args, status, out, stderr, c.status, c.stdout, c.stderr)
		}
	}
	// Continue on the next day.
	for name := range map[string]bool{"a.txt": true, "b1.txt": true, "b2.txt": true} {
		later(t, filepath.Join(dir, name))
	}
	in.set("a.example/list", says("<html>"))
	in.set("b.example/2", says("AS64496\nAS64497,\n"))
	out, stderr, status := in.scanwatch(t, "-f", conf, "update")
	if want := "scanwatch: a a.txt: new file not used: the file is a web page, not a list; it may be an error page or a login page\nscanwatch: 1 file kept, because the new file is implausible\n"; status != exitKept || stderr != want {
		t.Errorf("exit status %d\n%s", status, stderr)
	}
	if want := "b b1.txt: unchanged\nb b2.txt: updated, 2 entries, 2 added, 0 removed\n"; out != want {
		t.Errorf("%s", out)
	}
	later(t, filepath.Join(dir, "a.txt"))
	out, stderr, status = in.scanwatch(t, "-f", conf, "update", "--json", "a")
	var results []fetch.Result
	if err := json.Unmarshal([]byte(out), &results); err != nil || len(results) != 1 || !results[0].Checked.Equal(now) || results[0].Outcome != fetch.Kept || status != exitKept || strings.Count(stderr, "\n") != 2 {
		t.Errorf("%v, exit status %d\n%s%s", err, status, out, stderr)
	}
	later(t, filepath.Join(dir, "a.txt"))
	in.set("a.example/list", says("203.0.113.1\n"))
	_, stderr, status = in.scanwatch(t, "-f", conf, "update", "a")
	if want := "fewer than half of the previous 10; if it is correct, from 2026-11-02 12:10: scanwatch -f " + conf + " update --any-size --now a\n"; status != exitKept || !strings.Contains(stderr, want) {
		t.Errorf("exit status %d\n%s", status, stderr)
	}
	if out, _, status := in.scanwatch(t, "-f", conf, "check"); status != 0 || !strings.Contains(out, "table <a>: 10 entries") ||
		!strings.Contains(out, "download b b2.txt: last success 2026-11-02 12:00\n") {
		t.Errorf("check: exit status %d\n%s", status, out)
	}
}

// TestStaleFeed checks a list that is no longer downloaded. Reports and metrics must show this as a
// problem. scanwatch check must print the list's last success, and name unusable key files.
func TestStaleFeed(t *testing.T) {
	dir, conf := feedsConf(t, `store "state"
table <a> file "a.txt" format addresses url "https://a.example/list" key "a.key"
rule r phase connect match src <a> disconnect
companion forward user 4005 to url "/nonexistent/b.url" key "/nonexistent/b.key" header "/nonexistent/b.header"
`)
	meta := `{"url": "https://a.example/list", "attempt": "2026-11-02T11:00:00Z", "checked": "2026-10-20T11:00:00Z", "error": "the server answers 404 Not Found"}`
	err := errors.Join(os.WriteFile(filepath.Join(dir, "a.txt"), []byte("203.0.113.1\n"), 0o644), os.WriteFile(filepath.Join(dir, "a.txt.meta"), []byte(meta), 0o644))
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "a.key"), []byte("secret"), 0o644), os.Chmod(filepath.Join(dir, "a.key"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if status := mkstore(filepath.Join(dir, "state")); status != 0 {
		t.Fatal(status)
	}
	const problem = "a a.txt: no successful download since 2026-10-20: the server answers 404 Not Found"
	for args, want := range map[string][]string{
		"report --mail": {problem}, "stats --prometheus": {" scanwatch_problems 3 "},
		"check": {problem, "key of a: other users can read", "download a a.txt: last success 2026-10-20 11:00", "file of the key: stat /nonexistent/b.key",
			"file of the header: ", "file of the URL: "},
	} {
		var out bytes.Buffer
		program(&out).main(append([]string{"-f", conf, "-s", filepath.Join(dir, "state")}, strings.Fields(args)...), &out)
		for _, part := range want {
			if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), part) {
				t.Errorf("%s: no %q in\n%s", args, part, out.String())
			}
		}
	}
}

// later sets the time of the last request to a week earlier.
func later(t *testing.T, file string) {
	t.Helper()
	var m map[string]any
	b, err := os.ReadFile(file + ".meta")
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	m["attempt"] = now.AddDate(0, 0, -7)
	b, _ = json.Marshal(m)
	if err := errors.Join(err, os.WriteFile(file+".meta", b, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestUpdateConfiguration checks configuration errors, which scanwatch check also reports.
func TestUpdateConfiguration(t *testing.T) {
	for text, want := range map[string]string{
		`table <a> file "a" feed spamhaus`:                           ":1:11: feed spamhaus is not in the catalogue; see scanwatch update --list",
		`table <a> file "a" feed dbip-asn`:                           ":1:11: feed dbip-asn is a database; use it with asn or country",
		`table <a> file "a" feed abuseipdb`:                          ":1:11: feed abuseipdb needs a key: write it to a file and add: key \"file\"",
		`table <a> file "a" feed spamhaus-drop4 every 10m`:           ":1:11: feed spamhaus-drop4 allows one request every 1h",
		`table <a> file "a" format bogus url "https://example.org/"`: ":1:11: unknown format \"bogus\"; the formats are:",
		`asn "a" feed spamhaus-asndrop`:                              ":1:1: feed spamhaus-asndrop has the format spamhaus-asndrop; asn and country need a database, tables a list",
		"asn \"a\" feed dbip-asn\ncountry \"a\" feed dbip-country":   "/a is already downloaded for asn",
		`table <a> { file "a" feed cins, file "./a" feed dshield }`:  "/a is already downloaded for a",
		"mode observe":                    "has no table, asn or country with url or feed",
		`table <a> file "a" format plain`: "has no table, asn or country with url or feed",
		"table <a> { file \"a\" feed cins }\nrule r phase connect match src <unknown> disconnect\n": "unknown",
	} {
		dir, conf := feedsConf(t, text+"\n")
		for _, name := range []string{"a"} {
			os.WriteFile(filepath.Join(dir, name), []byte("192.0.2.1\n"), 0o644)
		}
		var stderr bytes.Buffer
		if status := program(&stderr).main([]string{"-f", conf, "update", "--dry-run"}, io.Discard); status != exitFailure || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit status %d: %s, want %s", text, status, stderr.String(), want)
		}
		if strings.Contains(want, "with url or feed") || strings.HasPrefix(text, "asn") {
			continue
		}
		stderr.Reset()
		if status := program(&stderr).main([]string{"-f", conf, "check"}, io.Discard); status != exitFailure {
			t.Errorf("%s: check: exit status %d: %s", text, status, stderr.String())
		}
	}
}

// TestUpdateCatalogue checks that each feed in the catalogue is valid in a configuration.
func TestUpdateCatalogue(t *testing.T) {
	var out, stderr bytes.Buffer
	if status := program(&stderr).main([]string{"update", "--list", "--json"}, &out); status != exitOK {
		t.Fatal(stderr.String())
	}
	var feeds []struct {
		Name, URL, Format, Least, Terms, Credit string
		Key                                     bool
	}
	if err := json.Unmarshal(out.Bytes(), &feeds); err != nil || len(feeds) < 15 {
		t.Fatal(err, len(feeds))
	}
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), ".Ss Catalogue\n")
	section, _, _ = strings.Cut(section, ".Ss ")
	for i, f := range feeds {
		key := ""
		if f.Key {
			key = ` key "k"`
		}
		line := fmt.Sprintf("table <t> file \"t\" feed %s%s every %s\nrule r phase connect match src <t> disconnect\n", f.Name, key, f.Least)
		if f.Format == "mmdb" {
			line = fmt.Sprintf("asn \"t\" feed %s%s every %s\n", f.Name, key, f.Least)
		}
		_, conf := feedsConf(t, line)
		got, _, err := feedsOf(&env{file: conf, find: func(s string) string { return s }})
		if err != nil || len(got) != 1 || got[0].URL != f.URL || cmp.Or(got[0].Format, "mmdb") != f.Format || !strings.HasPrefix(f.URL, "https://") {
			t.Errorf("%d: %s: %+v, %v", i, line, got, err)
		}
		if f.Terms == "" || f.Credit == "" {
			t.Errorf("%s has no terms or credit", f.Name)
		}
		if !strings.Contains(section, " "+f.Name+" ") && !strings.Contains(section, " "+f.Name+"\n") {
			t.Errorf("section Catalogue of the manual does not have %s", f.Name)
		}
	}
}

// TestUpdateAsOwner checks that root acts as the owner of the file's directory. If the file is a
// link, root must act as the owner of the directory of its target. The target need not exist.
func TestUpdateAsOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	in := newInternet(t)
	dir, conf := feedsConf(t, "table <a> file \"feeds/a.txt\" format addresses url \"https://a.example/list\" key \"feeds/key\"\ntable <b> file \"link.txt\" format addresses url \"https://a.example/list\"\n")
	feeds := filepath.Join(dir, "feeds")
	const unprivileged = 65534
	if err := errors.Join(os.Mkdir(feeds, 0o755), os.WriteFile(feeds+"/key", []byte("Key: 1\n"), 0o600),
		os.Symlink("feeds/b.txt", filepath.Join(dir, "link.txt")), os.Chown(feeds, unprivileged, unprivileged), os.Chown(feeds+"/key", unprivileged, unprivileged)); err != nil {
		t.Fatal(err)
	}
	in.set("a.example/list", says("203.0.113.1\n"))
	if out, stderr, status := in.scanwatch(t, "-f", conf, "update"); status != 0 {
		t.Fatal(status, out, stderr)
	}
	for _, name := range []string{"a.txt", "a.txt.meta", "b.txt", "b.txt.meta"} {
		info, err := os.Stat(filepath.Join(feeds, name))
		if err != nil {
			t.Fatal(err)
		}
		if s := info.Sys().(*syscall.Stat_t); s.Uid != unprivileged || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: owner %d, mode %v", name, s.Uid, info.Mode())
		}
	}
}

// TestUpdateUnsafeDirectory checks that root does not use a directory that any user can change, and
// that the other files are still downloaded.
func TestUpdateUnsafeDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	in := newInternet(t)
	dir, conf := feedsConf(t, "table <a> file \"open/a.txt\" format addresses url \"https://a.example/list\"\ntable <b> file \"b.txt\" format addresses url \"https://a.example/list\"\n")
	if err := errors.Join(os.Mkdir(dir+"/open", 0o755), os.Chmod(dir+"/open", 0o777)); err != nil {
		t.Fatal(err)
	}
	in.set("a.example/list", says("203.0.113.1\n"))
	out, stderr, status := in.scanwatch(t, "-f", conf, "update", "--json")
	var results []fetch.Result
	if err := json.Unmarshal([]byte(out), &results); err != nil || status != 1 || len(results) != 2 || results[0].Outcome != fetch.Failed || results[1].Outcome != fetch.Updated {
		t.Errorf("%d, %v: %s%s", status, err, out, stderr)
	}
}

// TestUpdateAsUser checks that the user that runs the timer can update files in the sandbox,
// including the target of a link.
func TestUpdateAsUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	in := newInternet(t)
	dir, conf := feedsConf(t, `table <a> file "feeds/a.txt" format addresses url "https://a.example/a"
table <b> file "link" format addresses url "https://a.example/b"
`)
	in.set("a.example/a", says("203.0.113.1\n"))
	in.set("a.example/b", says("203.0.113.2\n"))
	const unprivileged = 65534
	err := errors.Join(os.Mkdir(dir+"/feeds", 0o755), os.Mkdir(dir+"/target", 0o755), os.Chown(dir+"/feeds", unprivileged, unprivileged), os.Chown(dir+"/target", unprivileged, unprivileged),
		os.Symlink("target/b.txt", dir+"/link"), os.WriteFile(dir+"/target/b.txt", nil, 0o644), os.Chown(dir+"/target/b.txt", unprivileged, unprivileged))
	self, wrong := os.Executable()
	if err := errors.Join(err, wrong); err != nil {
		t.Fatal(err)
	}
	// Other users cannot enter the test's directory.
	program, err := os.ReadFile(self)
	if err := errors.Join(err, os.WriteFile(dir+"/scanwatch", program, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := in.command(t, "-f", conf, "update")
	cmd.Path, cmd.SysProcAttr = dir+"/scanwatch", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: unprivileged, Gid: unprivileged}}
	out, err := cmd.CombinedOutput()
	if want := "a a.txt: updated, 1 entry, 1 added, 0 removed\nb link: updated, 1 entry, 1 added, 0 removed\n"; string(out) != want || err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestFreshDrop runs the manual's recipe for Spamhaus DROP. A listed host must be rejected until it
// is removed from the list, even after a failed update.
func TestFreshDrop(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	_, recipe, _ := strings.Cut(string(page), ".Ss Spamhaus DROP, updated daily\n")
	_, recipe, _ = strings.Cut(recipe, ".Bd -literal -offset indent\n")
	recipe, _, _ = strings.Cut(recipe, ".Ed")
	dir, conf := feedsConf(t, "")
	recipe = strings.ReplaceAll(unroff(recipe), "/var/lib/scanwatch-feeds/", dir+"/")
	if err := os.WriteFile(conf, []byte(recipe), 0o644); err != nil {
		t.Fatal(err)
	}
	in := newInternet(t)
	list := func(networks ...string) string {
		var b strings.Builder
		for i, n := range networks {
			fmt.Fprintf(&b, "{\"cidr\":%q,\"sblid\":\"SBL%d\",\"rir\":\"arin\"}\n", n, i)
		}
		fmt.Fprintf(&b, "{\"type\":\"metadata\",\"timestamp\":1793000000,\"size\":1,\"records\":%d}\n", len(networks))
		return b.String()
	}
	in.set("www.spamhaus.org/drop/drop_v4.json", says(list("198.51.100.0/24", "203.0.113.0/24")))
	in.set("www.spamhaus.org/drop/drop_v6.json", says(list("2001:db8::/32")))
	run := func(want int, args ...string) string {
		t.Helper()
		out, stderr, status := in.scanwatch(t, append([]string{"-f", conf}, args...)...)
		if status != want {
			t.Errorf("%v: exit status %d\n%s%s", args, status, out, stderr)
		}
		return out
	}
	if _, stderr, status := in.scanwatch(t, "-f", conf, "check"); status != exitFailure || !strings.Contains(stderr, "to download it: scanwatch update drop") {
		t.Errorf("check without the files: exit status %d, %s", status, stderr)
	}
	run(exitOK, "update")
	run(exitOK, "check")
	for host, want := range map[string]string{"198.51.100.9": "drop: disconnect", "2001:db8::9": "drop: disconnect", "192.0.2.99": "proceed"} {
		if got := fate(t, run(exitOK, "test", "--json", "--enforce", "--src", host)); got != want {
			t.Errorf("%s: %s, want %s", host, got, want)
		}
	}
	in.set("www.spamhaus.org/drop/drop_v4.json", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	later(t, filepath.Join(dir, "drop4.json"))
	run(exitFailure, "update")
	if got := fate(t, run(exitOK, "test", "--json", "--enforce", "--src", "198.51.100.9")); got != "drop: disconnect" {
		t.Errorf("after a failed update: %s", got)
	}
	in.set("www.spamhaus.org/drop/drop_v4.json", says(list("203.0.113.0/24")))
	later(t, filepath.Join(dir, "drop4.json"))
	run(exitOK, "update")
	if got := fate(t, run(exitOK, "test", "--json", "--enforce", "--src", "198.51.100.9")); got != "proceed" {
		t.Errorf("after the removal from the list: %s", got)
	}
}

// fate returns a session's outcome from the output of "test --json".
func fate(t *testing.T, out string) string {
	t.Helper()
	var s struct {
		Phases []struct {
			Decision string
			Rules    []struct{ Rule, Outcome string }
		}
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	for _, p := range s.Phases {
		for _, r := range p.Rules {
			name := strings.TrimPrefix(r.Rule, "rule ")
			switch what, ban, banned := strings.Cut(r.Outcome, ": "); {
			case what == "decides" && banned:
				return name + ": " + p.Decision + ", " + ban
			case what == "decides":
				return name + ": " + p.Decision
			case what == "matches" && strings.HasPrefix(ban, "ban "):
				return name + ": " + ban
			}
		}
	}
	return "proceed"
}
