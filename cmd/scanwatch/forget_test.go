package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/erase"
	"scanwatch/filter/memory"
	"scanwatch/filter/privacy"
	"scanwatch/internal/smtp"
	"scanwatch/store"
	"scanwatch/store/column"
)

// people holds a state directory with data about a few users and senders. The records include
// sealed days, today's rows, aggregates, hashes and hostile names.
type people struct {
	t      *testing.T
	dir    string
	memory *memory.Memory
	w      *store.Writer
	id     uint64
}

const (
	hostileName = "ev\x1b[31mil\r\n@example.org"
	personAddr  = "203.0.113.77"
	personUser  = "quixotel"
	personMail  = "quixotel@example.org"
)

func newPeople(t *testing.T) *people {
	t.Helper()
	short, err := os.MkdirTemp("", "sw") // a path short enough for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	p := &people{t: t, dir: filepath.Join(short, "state"), memory: memory.New()}
	p.w = store.Open(p.dir, store.Options{Now: func() time.Time { return now }, Program: "test"})
	key, err := privacyKey(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	hashed := string(privacy.New(key).Mailbox(nil, []byte(personMail)))
	p.memory.Days.Add(&memory.Ended{}, now.Add(-100*aDay).UnixMicro()) // the table goes back further than any mail
	for _, ago := range []time.Duration{50 * time.Hour, 26 * time.Hour, time.Hour} {
		p.session(ago, personAddr, 1, "host.person.example", person()...)
		p.sum(ago+time.Minute, personAddr)
		p.session(ago, "198.51.100.9", 1, "mx.example.net",
			store.Step{Kind: store.KindMail, Text: []byte("friend@example.net"), Result: smtp.ResultOK},
			store.Step{Kind: store.KindRcpt, Text: []byte("Quixotel+list@Example.org"), Result: smtp.ResultPermfail, Reply: []byte("550 <" + personMail + "> unknown")},
			store.Step{Kind: store.KindRcpt, Text: []byte(hashed), Result: smtp.ResultOK},
			store.Step{Kind: store.KindRcpt, Text: []byte(hostileName), Result: smtp.ResultOK})
		p.session(ago, "192.0.2.66", 0, "", append(finding(), store.Step{Kind: store.KindAuth, Text: []byte(strings.ToUpper(personUser)), Result: smtp.ResultFail},
			store.Step{Kind: store.KindCommand, Text: []byte("VRFY " + personUser), Reply: []byte("502 no")})...)
	}
	if err := p.w.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := &memory.Client{Addr: netip.MustParseAddr(personAddr), User: []byte(personUser)}
	p.memory.Load(func(func(store.Entry) bool) {}, now.UnixMicro())
	p.memory.Peers.Delivered(c, memory.Delivery{Messages: 1, Senders: []string{"person.example"}}, now.Add(-26*time.Hour).UnixMicro())
	p.memory.Recipients.Accepted([]byte(personMail), now.UnixMicro())
	p.memory.Logins.Wrote(c, now.UnixMicro())
	return p
}

var peopleKey = bytes.Repeat([]byte{9}, 32)

func privacyKey(dir string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	return privacy.SaveKey(dir, peopleKey)
}

func finding() []store.Step {
	return []store.Step{{Kind: store.KindFinding, Text: []byte("harvest"), Arg: []byte(personAddr), By: []byte("memory"), Confidence: []byte("high")}}
}

// person returns the steps of a session that mentions the person and has evidence.
func person() []store.Step {
	return append([]store.Step{
		{Kind: store.KindHelo, Text: []byte("[" + personAddr + "]"), Arg: []byte("EHLO"), Result: smtp.ResultOK},
		{Kind: store.KindMail, Text: []byte("me@person.example"), Result: smtp.ResultOK},
		{Kind: store.KindRcpt, Text: []byte("other@example.org"), Result: smtp.ResultOK, Reply: []byte("hello " + personAddr)},
		{Kind: store.KindCommit, Size: 9},
		{Kind: store.KindBan, Text: []byte("rule"), Prefix: netip.MustParsePrefix(personAddr + "/32"), Until: now.Add(time.Hour)},
	}, finding()...)
}

func (p *people) session(ago time.Duration, src string, mails uint32, rdns string, steps ...store.Step) {
	p.add(store.Record{Start: now.Add(-ago - time.Second), End: now.Add(-ago), Src: netip.MustParseAddrPort(src + ":25"), RDNS: []byte(rdns), FCrDNS: smtp.FCrDNSPass,
		Counts: store.Counts{Mails: mails}}, steps...)
}

func (p *people) sum(ago time.Duration, src string) {
	p.add(store.Record{Start: now.Add(-ago - time.Hour), End: now.Add(-ago), Src: netip.AddrPortFrom(netip.MustParseAddr(src), 0), Sessions: 40, Found: 40,
		RDNS: []byte("host.person.example"), Counts: store.Counts{Mails: 2}}, append(finding(), store.Step{Kind: store.KindRcpt, Text: []byte("@example.org"), Times: 3, Count: 3})...)
}

func (p *people) add(r store.Record, steps ...store.Step) {
	var b []byte
	for i := range steps {
		b = store.AppendStep(b, &steps[i], time.Millisecond)
	}
	p.id++
	p.w.Add(r.End, p.id, store.AppendRecord(nil, &r, b))
}

// stop writes all files and seals finished days.
func (p *people) stop() {
	p.t.Helper()
	f := p.state()
	if err := errors.Join(f.Flush(p.t.Context()), f.Close(), p.w.Flush(p.t.Context()), p.w.Close()); err != nil {
		p.t.Fatal(err)
	}
	if n, err := store.SealDays(p.dir, "test", now); n != 2 || err != nil {
		p.t.Fatalf("%d days sealed, %v", n, err)
	}
}

func (p *people) state() *store.State {
	return store.OpenState(p.dir, store.StateOptions{Buckets: memory.Buckets(), Program: "test", Changes: p.memory.Changes, Rewrite: p.memory.Rewrite,
		Load: func(all iter.Seq[store.Entry]) { p.memory.Load(all, now.UnixMicro()) }})
}

// run runs a command and returns its status and output.
func (p *people) run(args ...string) (status int, out, stderr string) {
	p.t.Helper()
	var o, e bytes.Buffer
	status = program(&e).main(append([]string{"-s", p.dir}, args...), &o)
	return status, o.String(), e.String()
}

// digest returns a hash of all files.
func (p *people) digest() string {
	p.t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(p.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(b))
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// search returns the files in which any of the given words occurs, even in compressed
// data.
func (p *people) search(words ...string) (found []string) {
	p.t.Helper()
	look := func(name string, b []byte) {
		for _, w := range words {
			if bytes.Contains(b, []byte(w)) || bytes.Contains(bytes.ToLower(b), []byte(w)) { // ToLower replaces bytes that are not UTF-8
				found = append(found, fmt.Sprintf("%q in %s", w, name))
			}
		}
	}
	err := filepath.WalkDir(p.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == privacy.KeyFile {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		look(name, b)
		if !strings.HasSuffix(name, ".sealed.db") {
			return nil
		}
		db, err := bbolt.Open(name, 0o640, &bbolt.Options{ReadOnly: true})
		if err != nil {
			return err
		}
		defer db.Close()
		return db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("blocks")).ForEach(func(_, v []byte) error {
				var r column.Reader
				if r.Open(v[16:]) != nil {
					return nil // the column is corrupt
				}
				for i := range r.Len() {
					var texts column.Texts
					if r.Texts(i, &texts) != nil {
						continue // the column contains numbers
					}
					for j := range r.Values(i) {
						look(name+" "+string(r.Name(i)), texts.At(j))
					}
				}
				return nil
			})
		})
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return found
}

// rawAddr returns an address in its stored form.
func rawAddr(addr string) string {
	b := netip.MustParseAddr(addr).As4()
	return string(b[:])
}

// TestForgetFiles checks the removal of a person while no filter is running. A dry run must change
// nothing. After the removal, the person must not occur in any file, not even in compressed
// columns. Totals, and the data of all other users and senders, must remain.
func TestForgetFiles(t *testing.T) {
	hashed := strings.ToLower(string(privacy.New(peopleKey).Mailbox(nil, []byte(personMail))))
	for _, c := range []struct {
		who, out string
		gone     []string
		src      string // source of the sessions, except those without a source
	}{
		{personAddr, "sessions  123 sessions from this address", []string{personAddr, rawAddr(personAddr), "person.example"}, ""},
		{personAddr + "/32", "sessions  123 ", []string{personAddr, rawAddr(personAddr), "person.example"}, ""},
		{"203.0.113.0/24", "sessions  123 sessions from this network", []string{personAddr, rawAddr(personAddr), "person.example"}, ""},
		{strings.ToUpper(personUser), "names     3 sessions", []string{personUser + "\x00", "vrfy " + personUser}, personAddr},
		{personMail, "names     3 sessions", []string{personMail, personUser + "+", hashed}, personAddr},
		{"ev\\x1b[31mil\\r\\n@example.org", "names     3 sessions", []string{"ev\x1b", "mil\r\n@"}, personAddr},
	} {
		t.Run(c.who, func(t *testing.T) {
			p := newPeople(t)
			p.stop()
			for _, w := range c.gone {
				if len(p.search(w)) == 0 && w != personUser+"\x00" {
					t.Fatalf("%q is not in the files before", w)
				}
			}
			_, before, _ := p.run("report", "--since", "7d", "--only", "evidence,rules")
			digest := p.digest()
			status, out, stderr := p.run("forget", c.who)
			if status != exitOK || !strings.Contains(out, c.out) || !strings.HasSuffix(out, "nothing was removed; --yes removes these data\n") || stderr != "" || p.digest() != digest || strings.Contains(out, "\x1b") {
				t.Errorf("dry run: status %d, changed %v, %s%s", status, p.digest() != digest, out, stderr)
			}
			status, out, stderr = p.run("forget", "--yes", c.who)
			if status != exitOK || !strings.Contains(out, c.out) || !strings.Contains(out, "\nremoved; ") || stderr != "" {
				t.Errorf("status %d, %s%s", status, out, stderr)
			}
			if found := p.search(c.gone...); len(found) > 0 {
				t.Errorf("found %s", strings.Join(found, "\n"))
			}
			if _, after, _ := p.run("report", "--since", "7d", "--only", "evidence,rules"); after != before {
				t.Errorf("the report has changed from\n%s\nto\n%s", before, after)
			}
			if c.src != "" && len(p.search(c.src)) == 0 {
				t.Errorf("%s is also gone", c.src)
			}
			status, out, _ = p.run("forget", c.who)
			if status != exitOK || !strings.Contains(out, "nothing is stored about") || strings.Contains(out, "--yes") {
				t.Errorf("again: status %d, %s", status, out)
			}
			if status, out, _ := p.run("why", c.who); status == exitOK {
				t.Errorf("why finds %s", out)
			}
			if status, out, stderr := p.run("fsck"); status != exitOK {
				t.Errorf("fsck: %s%s", out, stderr)
			}
			if _, out, _ := p.run("dump"); strings.Count(out, "\n") != 12 {
				t.Errorf("%d records, want 12", strings.Count(out, "\n"))
			}
		})
	}
}

// TestDumpUser checks that scanwatch dump finds a user regardless of case. It must also find a name
// that was hashed as a possible password.
func TestDumpUser(t *testing.T) {
	p := newPeople(t)
	key, err := privacyKey(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	p.session(time.Minute, "192.0.2.66", 0, "", store.Step{Kind: store.KindAuth, Text: privacy.New(key).Word(nil, []byte("Summer2024")), Result: smtp.ResultFail})
	p.stop()
	for name, want := range map[string]int{personUser: 3, "Quixotel": 3, "summer2024": 1, "quixote": 0, personMail: 0} {
		for _, format := range []string{"--json", "--csv"} {
			if format == "--csv" {
				want++ // header line
			}
			status, out, stderr := p.run("dump", format, "--user", name)
			if n := strings.Count(out, "\n"); status != exitOK || n != want {
				t.Errorf("%s %s: %d lines, want %d; %s", format, name, n, want, stderr)
			}
		}
	}
}

// TestForgetStanding checks that a dry run announces the loss of standing.
func TestForgetStanding(t *testing.T) {
	p := newPeople(t)
	p.stop()
	const want = "\nstanding  known clients become unknown clients"
	if _, out, _ := p.run("forget", personAddr); !strings.Contains(out, want) {
		t.Errorf("%s", out)
	}
	if _, out, _ := p.run("forget", personUser); strings.Contains(out, want) {
		t.Errorf("a user has no standing: %s", out)
	}
}

// TestForgetRole checks that a role account with a subaddress is refused, because the
// role account itself would be affected.
func TestForgetRole(t *testing.T) {
	p := newPeople(t)
	p.stop()
	before := p.digest()
	for _, yes := range []string{"--yes=false", "--yes"} {
		if status, out, stderr := p.run("forget", yes, "postmaster+x@example.org"); status != exitFailure || !strings.Contains(stderr, "role account") {
			t.Errorf("%s: %d, %s%s", yes, status, out, stderr)
		}
	}
	if p.digest() != before {
		t.Error("files have changed")
	}
}

// TestForgetBan checks that an active ban is removed only with --bans.
func TestForgetBan(t *testing.T) {
	p := newPeople(t)
	p.memory.Bans.Add(&memory.Client{Addr: netip.MustParseAddr(personAddr)}, memory.BanRequest{Ladder: []time.Duration{24 * time.Hour}, Rule: "harvest"}, now.UnixMicro())
	p.stop()
	status, out, stderr := p.run("forget", "--json", personAddr)
	if status != exitOK || !strings.HasPrefix(out, `{"schema":1,"person":"203.0.113.77","removed":false,"sessions":`) ||
		!strings.Contains(out, `"kept_bans":[{"prefix":"203.0.113.77","until":"2026-11-03T12:00:00.000000Z","rule":"harvest"}]`) {
		t.Errorf("JSON: status %d, %s%s", status, out, stderr)
	}
	status, out, stderr = p.run("forget", "--yes", personAddr)
	if status != exitOK || !strings.Contains(out, "kept      the ban of "+personAddr+" until 2026-11-03 12:00 +0000, by harvest") {
		t.Errorf("status %d, %s%s", status, out, stderr)
	}
	if _, out, _ := p.run("bans"); !strings.Contains(out, personAddr) {
		t.Errorf("the ban is gone: %s", out)
	}
	status, out, stderr = p.run("forget", "--yes", "--bans", personAddr)
	if status != exitOK || strings.Contains(out, "kept") || !strings.Contains(out, "1 row of bans") {
		t.Errorf("with bans: status %d, %s%s", status, out, stderr)
	}
	if found := p.search(personAddr, rawAddr(personAddr)); len(found) > 0 {
		t.Errorf("found %s", strings.Join(found, "\n"))
	}
}

// TestForgetExport checks that an erased host with mail is not exported as a scanner, and that all
// other entries are exported. If the table of known hosts was full, the records must show which
// hosts sent mail.
func TestForgetExport(t *testing.T) {
	for _, full := range []bool{false, true} {
		p := newPeople(t)
		if full {
			p.memory = memory.New()
			p.memory.Limit(1)
			p.memory.Days.Add(&memory.Ended{}, now.Add(-100*aDay).UnixMicro())
			for i := range 2000 {
				p.memory.Peers.Delivered(&memory.Client{Addr: hostNumber(i)}, memory.Delivery{Messages: 1, Senders: []string{"example.net"}}, now.Add(-51*time.Hour).UnixMicro())
			}
		}
		p.stop()
		export := func() string {
			status, out, stderr := exportOf(t, p.dir, "plain", "--evidence", "any", "--accept-loss", "2026-10-01")
			return fmt.Sprintln(status, out, stderr)
		}
		before := export()
		if status, out, stderr := p.run("forget", "--yes", personAddr); status != exitOK {
			t.Fatalf("%s%s", out, stderr)
		}
		if after := export(); after != before || strings.Contains(after, personAddr) || !full && !strings.Contains(after, "192.0.2.66") {
			t.Errorf("full %v: the export has changed from\n%s\nto\n%s", full, before, after)
		}
	}
}

// TestForgetMissed checks that the command names corrupt and quarantined files, exits
// with an error status, and changes all other files.
func TestForgetMissed(t *testing.T) {
	p := newPeople(t)
	p.stop()
	sealed := filepath.Join(p.dir, "sessions", "2026-10-31.sealed.db")
	b, err := os.ReadFile(sealed)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, []byte("SWB\x01"))
	b[at+100] ^= 1
	aside := "sessions/2026-10-01.db.damaged-20261101T000000000Z"
	err = errors.Join(os.WriteFile(sealed, b, 0o640), os.WriteFile(filepath.Join(p.dir, aside), []byte(personAddr), 0o640))
	if err != nil {
		t.Fatal(err)
	}
	status, out, stderr := p.run("forget", personAddr)
	if status != exitOK || !strings.Contains(out, "missed    "+aside) || !strings.Contains(out, "missed    2026-10-31.sealed.db: ") {
		t.Errorf("dry run: status %d, %s%s", status, out, stderr)
	}
	status, out, stderr = p.run("forget", "--yes", personAddr)
	if status != exitFailure || !strings.Contains(out, "missed    "+aside) || !strings.Contains(out, "missed    sessions/2026-10-31.sealed.db: ") || !strings.Contains(stderr, "2 files may still have the person") {
		t.Errorf("status %d, %s%s", status, out, stderr)
	}
	for _, f := range p.search(personAddr) {
		if !strings.Contains(f, "2026-10-31.sealed.db") && !strings.Contains(f, aside) {
			t.Error(f)
		}
	}
	for arg, want := range map[string]string{
		"192.0.2.300": "write 192.0.2.1", "0.0.0.0/0": "is larger than", "postmaster": "role account", "": "is not an address", "a/b": "write 192.0.2.1",
		// These are addresses with a typing error, not user names.
		"192.0.2.1:25": "has a port; write 192.0.2.1", "192.0.2.1-192.0.2.9": "write it as prefixes", "fe80::1%eth0": "has a zone; write fe80::1",
		"2001:db8::g": "write 192.0.2.1", "2001:db8:::1": "write 192.0.2.1", "IPv6:2001:db8::1": "write 192.0.2.1",
	} {
		if status, _, stderr := p.run("forget", arg); status != exitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%q: status %d, %s", arg, status, stderr)
		}
	}
	if status, _, stderr := p.run("-s", filepath.Join(p.dir, "missing"), "forget", "--yes", personAddr); status != exitFailure || !strings.Contains(stderr, "read state directory") {
		t.Errorf("a missing directory: %d, %s", status, stderr)
	}
}

// TestForgetWithFilter checks that a running filter removes the person from its memory,
// its open segment and its files, and that it can still write afterwards.
func TestForgetWithFilter(t *testing.T) {
	p := newPeople(t)
	p.stop()
	p.memory = memory.New()
	state := p.state()
	p.w = store.Open(p.dir, store.Options{Now: func() time.Time { return now }, Program: "test", Seal: true})
	c := &memory.Client{Addr: netip.MustParseAddr(personAddr), User: []byte(personUser)}
	p.session(time.Minute, personAddr, 0, "", person()...) // not yet on disk
	flushed := errors.Join(state.Flush(t.Context()), p.w.Flush(t.Context()))
	var once sync.Once
	sums := func() { once.Do(func() { p.sum(time.Second, personAddr) }) }
	commands := append(control.StoreCommands(p.w, state.Flush), control.MemoryCommands(p.memory, state, now.UnixMicro, func() bool { return true }, func(memory.Ban) {})...)
	commands = append(commands, control.EraseCommands(control.Eraser{Dir: p.dir, Memory: p.memory, State: state, Store: p.w, Sums: sums, Now: now.UnixMicro})...)
	l, err := control.Listen(p.dir)
	if err = errors.Join(err, flushed); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); (&control.Server{Commands: commands}).Serve(ctx, l) }()
	p.session(2*time.Second, personAddr, 0, "", person()...) // still buffered
	status, out, stderr := p.run("forget", "--yes", personAddr)
	if status != exitOK || !strings.Contains(out, "1 row of known clients") || stderr != "" {
		t.Errorf("status %d, %s%s", status, out, stderr)
	}
	if st := p.memory.Peers.Standing(c, now.UnixMicro()); st.Messages != 0 {
		t.Errorf("standing %+v", st)
	}
	if status, out, stderr := p.run("forget", "--yes", personMail); status != exitOK {
		t.Errorf("status %d, %s%s", status, out, stderr)
	}
	if status, out, stderr := p.run("forget", "--yes", personUser); status != exitOK {
		t.Errorf("status %d, %s%s", status, out, stderr)
	}
	p.session(time.Second, "192.0.2.67", 0, "later.example")
	if err := errors.Join(p.w.Flush(t.Context()), state.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	client, err := control.Dial(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	person, err := erase.Parse(personAddr)
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range []string{"../state.db", "2026-11-02.db.damaged-1", "x y"} {
		if _, err := client.Erase(segment, person); err == nil {
			t.Errorf("%q was rewritten", segment)
		}
	}
	client.Close()
	stop()
	<-ended
	if err := errors.Join(state.Close(), p.w.Close()); err != nil {
		t.Fatal(err)
	}
	if found := p.search(personAddr, rawAddr(personAddr), "person.example", personUser); len(found) > 0 {
		t.Errorf("found %s", strings.Join(found, "\n"))
	}
	if len(p.search("later.example")) == 0 {
		t.Error("the filter cannot write")
	}
	if _, out, _ := p.run("dump"); strings.Count(out, "\n") != 12+4 {
		t.Errorf("%d records", strings.Count(out, "\n"))
	}
	if status, out, stderr := p.run("fsck"); status != exitOK {
		t.Errorf("fsck: %s%s", out, stderr)
	}
}
