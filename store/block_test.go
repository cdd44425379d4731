package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/store/column"
)

// everyStep returns a step of kind k with every field set.
func everyStep(k Kind) Step {
	s := Step{}
	fill(reflect.ValueOf(&s).Elem(), int(k)+1)
	s.Kind, s.At = k, time.Duration(k)*time.Millisecond
	s.Prefix = netip.MustParsePrefix("2001:db8::/48")
	s.Until = time.Unix(1_800_000_000+int64(k), 0).UTC()
	return s
}

// everyRecord returns a record with every field set.
func everyRecord(n int) Record {
	var r Record
	fill(reflect.ValueOf(&r).Elem(), n)
	r.Start, r.End = noon.Add(time.Duration(n)*time.Second), noon.Add(time.Duration(n)*time.Second+1234567*time.Microsecond)
	r.Src, r.Dst = netip.MustParseAddrPort("198.51.100.7:4711"), netip.MustParseAddrPort("[2001:db8::25]:587")
	return r
}

// fill sets the exported numbers, bools and texts in a struct and its inner structs.
func fill(v reflect.Value, n int) {
	for i := range v.NumField() {
		f := v.Field(i)
		if !v.Type().Field(i).IsExported() {
			continue
		}
		switch {
		case f.CanUint():
			f.SetUint(uint64(n))
		case f.Kind() == reflect.Bool:
			f.SetBool(true)
		case f.Kind() == reflect.String:
			f.SetString(fmt.Sprint(v.Type().Field(i).Name, n))
		case f.Type() == reflect.TypeFor[[]byte]():
			f.SetBytes(fmt.Append(nil, v.Type().Field(i).Name, n))
		case f.Type() == reflect.TypeFor[Counts]():
			fill(f, n)
		}
	}
}

// allSet fails the test if an exported field of a struct is zero.
func allSet(t *testing.T, v any) {
	t.Helper()
	s := reflect.ValueOf(v)
	for i := range s.NumField() {
		if f := s.Type().Field(i); f.IsExported() && s.Field(i).IsZero() {
			t.Errorf("the test does not set %s.%s", s.Type().Name(), f.Name)
		}
	}
}

// encoded returns r with the given steps, after encoding and decoding as a row.
func encoded(t testing.TB, r Record, all ...Step) Record {
	t.Helper()
	var steps []byte
	last := time.Duration(0)
	for i := range all {
		steps = AppendStep(steps, &all[i], all[i].At-last)
		last = all[i].At
	}
	got, err := Decode(AppendKey(nil, r.End, r.ID), AppendRecord(nil, &r, steps))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// plain returns a copy of r's exported fields and steps.
func plain(t testing.TB, r *Record) (Record, []Step) {
	t.Helper()
	var all []Step
	if err := r.Steps(func(s *Step) bool {
		c := *s
		for _, f := range []*[]byte{&c.Text, &c.Arg, &c.Reply, &c.Org, &c.By, &c.Match, &c.Confidence} {
			*f = bytes.Clone(*f)
		}
		all = append(all, c)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	c := *r
	for _, f := range []*[]byte{&c.RDNS, &c.Sketch, &c.Server, &c.FrontEnd, &c.Origin} {
		*f = bytes.Clone(*f)
	}
	c.steps, c.block, c.row, c.step, c.skip = nil, nil, 0, nil, 0
	c.Start, c.End = c.Start.UTC(), c.End.UTC()
	return c, all
}

// sealed encodes records as a block.
func sealed(t testing.TB, all ...Record) []byte {
	t.Helper()
	e := newBlockEncoder()
	for i := range all {
		e.add(&all[i])
	}
	if e.rows() != len(all) || e.bytes() <= 0 {
		t.Errorf("%d rows, %d bytes of %d records", e.rows(), e.bytes(), len(all))
	}
	value := e.finish(nil)
	if e.rows() != 0 || e.bytes() != 0 {
		t.Errorf("%d rows, %d bytes after finish", e.rows(), e.bytes())
	}
	return value
}

// unsealed returns a block's records with their steps of the given kinds.
func unsealed(t testing.TB, value []byte, kinds Kinds) (all []Record) {
	t.Helper()
	b, err := openBlock(value, kinds)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.rows() {
		var r Record
		b.record(i, &r)
		all = append(all, r)
	}
	return all
}

// TestEveryFieldHasAColumn checks by reflection that a block preserves each field of
// Record, Counts and Step. A new field without a row in recordFields or stepFields
// fails the test.
func TestEveryFieldHasAColumn(t *testing.T) {
	var all []Record
	for k := range Kind(numKinds) {
		all = append(all, encoded(t, everyRecord(int(k)+1), everyStep(k)))
	}
	for i, r := range unsealed(t, sealed(t, all...), AllKinds) {
		want, wantStep := everyRecord(i+1), everyStep(Kind(i))
		allSet(t, want)
		allSet(t, want.Counts)
		if i > 0 {
			allSet(t, wantStep)
		}
		got, steps := plain(t, &r)
		want.Start, want.End = want.Start.UTC(), want.End.UTC()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if !reflect.DeepEqual(steps, []Step{wantStep}) {
			t.Errorf("got  %+v\nwant %+v", steps, wantStep)
		}
	}
}

// mixedRecords returns records with up to five steps of different kinds.
func mixedRecords(t testing.TB, n int) (all []Record) {
	r := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		rec := Record{
			ID: r.Uint64(), Start: noon.Add(time.Duration(i) * time.Second), End: noon.Add(time.Duration(i)*time.Second + time.Duration(r.IntN(1e9))),
			Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(30))}), uint16(r.Uint32())), Dst: netip.MustParseAddrPort("198.51.100.25:25"),
			RDNS: fmt.Appendf(nil, "host%d.example.org", r.IntN(30)), FCrDNS: smtp.FCrDNS(r.IntN(3)), Ending: smtp.Ending(r.IntN(4)),
			Counts: Counts{Commands: r.Uint32N(9), Mails: r.Uint32N(2)},
		}
		rec.Start, rec.End = rec.Start.Truncate(time.Microsecond), rec.End.Truncate(time.Microsecond)
		at := time.Duration(0)
		var steps []Step
		for range r.IntN(6) {
			at += time.Duration(r.IntN(2)*r.IntN(1e6)) * time.Microsecond
			k := []Kind{KindHelo, KindMail, KindRcpt, KindFinding, KindVerdict}[r.IntN(5)]
			s := Step{Kind: k, At: at, Text: fmt.Appendf(nil, "text%d", r.IntN(100))}
			if k == KindVerdict {
				s = everyStep(k)
				s.At = at
			}
			steps = append(steps, s)
		}
		all = append(all, encoded(t, rec, steps...))
	}
	return all
}

// same checks that got and want are equal, including their steps of the given kinds.
func same(t *testing.T, got, want *Record, kinds Kinds) {
	t.Helper()
	row := *want
	row.skip = ^kinds
	gotHead, gotSteps := plain(t, got)
	wantHead, wantSteps := plain(t, &row)
	if !reflect.DeepEqual(gotHead, wantHead) {
		t.Errorf("got  %+v\nwant %+v", gotHead, wantHead)
	}
	if !reflect.DeepEqual(gotSteps, wantSteps) {
		t.Errorf("got  %+v\nwant %+v", gotSteps, wantSteps)
	}
}

// TestBlock checks that reading a record from rows and from a block gives the same result. The test
// covers all sets of kinds, Clone, and reused blocks.
func TestBlock(t *testing.T) {
	all := mixedRecords(t, 500)
	value := sealed(t, all...)
	var b block
	for _, kinds := range []Kinds{AllKinds, 0, KindsOf(KindFinding, KindVerdict), KindsOf(KindRcpt), KindsOf(KindQuit)} {
		if err := b.open(value, kinds); err != nil || b.rows() != len(all) {
			t.Fatal(err, b.rows())
		}
		for i := range all {
			var r Record
			b.record(i, &r)
			same(t, &r, &all[i], kinds)
			if end, id := b.key(i); end != uint64(all[i].End.UnixMicro()) || id != all[i].ID {
				t.Errorf("key %d %d of %v", end, id, all[i])
			}
			c := r.Clone()
			if c.block != nil {
				t.Fatal("a clone refers to the block")
			}
			same(t, &c, &all[i], kinds)
			if a, b := r.Size(), c.Size(); a != b {
				t.Errorf("size %d, of the clone %d", a, b)
			}
		}
	}
	if err := b.open(sealed(t, all[0]), AllKinds); err != nil || b.rows() != 1 {
		t.Fatal(err, b.rows())
	}
	var r Record
	b.record(0, &r)
	same(t, &r, &all[0], AllKinds)
}

// TestBlockOfABlock checks that records read from a block can be encoded again, as
// happens when records are removed.
func TestBlockOfABlock(t *testing.T) {
	all := mixedRecords(t, 200)
	again := unsealed(t, sealed(t, unsealed(t, sealed(t, all...), AllKinds)...), AllKinds)
	for i := range all {
		same(t, &again[i], &all[i], AllKinds)
	}
}

// TestEmptyBlock checks blocks without records and records without fields.
func TestEmptyBlock(t *testing.T) {
	if all := unsealed(t, newBlockEncoder().finish(nil), AllKinds); len(all) != 0 {
		t.Errorf("%d records", len(all))
	}
	for _, r := range unsealed(t, sealed(t, make([]Record, 3)...), AllKinds) {
		if _, steps := plain(t, &r); r.ID != 0 || r.Src.IsValid() || r.Dst.IsValid() || len(steps) > 0 {
			t.Errorf("%+v, %d steps", r, len(steps))
		}
	}
}

// TestUnknownColumns checks that columns from a newer version are skipped.
func TestUnknownColumns(t *testing.T) {
	all := mixedRecords(t, 50)
	e := newBlockEncoder()
	for i := range all {
		e.add(&all[i])
	}
	e.w.Numbers("colour", []uint64{1, 2, 3})
	e.w.Numbers("rcpt.colour", []uint64{1, 2, 3})
	for i, r := range unsealed(t, e.finish(nil), AllKinds) {
		same(t, &r, &all[i], AllKinds)
	}
}

// TestDamagedColumn checks that every changed byte is detected. If a step column is
// corrupt, the records must remain readable without that kind of step.
func TestDamagedColumn(t *testing.T) {
	all := mixedRecords(t, 40)
	value := sealed(t, all...)
	readable := 0
	for i := range value {
		damaged := bytes.Clone(value)
		damaged[i] ^= 1
		if _, err := openBlock(damaged, AllKinds); !errors.Is(err, column.ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if b, err := openBlock(damaged, KindsOf(KindMail)); err == nil {
			readable++
			for j := range all {
				var r Record
				b.record(j, &r)
				same(t, &r, &all[j], KindsOf(KindMail))
			}
		}
	}
	if readable < len(value)/10 {
		t.Errorf("the records can be read in spite of %d of %d changes", readable, len(value))
	}
}

// TestStepTimes checks that decoded times never decrease. The first gaps are exact.
// A later time may be too early by at most 1/16 of the longest gap so far.
func TestStepTimes(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		var times, back stepClock
		at, got := time.Duration(0), time.Duration(0)
		gaps, longest := 0, time.Duration(0)
		for range 1 + r.IntN(200) {
			gap := time.Duration(r.IntN(2)) * time.Duration(r.Int64N(1<<r.IntN(30)+1)) * time.Microsecond
			if at += gap; gap > 0 {
				gaps++
			}
			longest = max(longest, gap)
			code, rest, exact := times.encode(at)
			if back.exact(code) != exact {
				t.Fatal("the decoder expects another number of remainders")
			}
			before := got
			got = back.decode(code, rest)
			if got > at || at-got > longest/15 || gaps <= exactGaps && got != at || got < before || gap == 0 && got != before {
				t.Fatalf("gap %d of %v: at %v, want %v; longest gap %v", gaps, gap, got, at, longest)
			}
		}
	}
	for _, gap := range []uint64{0, 1, 15, 16, 31, 32, 33, 1<<40 - 1, 1 << 40} {
		if code := gapCode(gap); gapOf(code) > gap || gapOf(code+1) <= gap {
			t.Errorf("gap %d has code %d, which is %d", gap, code, gapOf(code))
		}
	}
}

// readBlock reads all records of a block if the block can be opened.
func readBlock(t *testing.T, value []byte, kinds Kinds) {
	b, err := openBlock(value, kinds)
	if err != nil {
		return
	}
	for i := range b.rows() {
		var r Record
		b.record(i, &r)
		last := time.Duration(0)
		if err := r.Steps(func(s *Step) bool {
			if s.At < last || !kinds.Has(s.Kind) {
				t.Fatalf("%+v after %v", s, last)
			}
			last = s.At
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzBlock checks that decoding arbitrary bytes either succeeds or returns an error.
func FuzzBlock(f *testing.F) {
	f.Add(sealed(f, mixedRecords(f, 20)...), uint32(AllKinds))
	f.Fuzz(func(t *testing.T, value []byte, kinds uint32) { readBlock(t, value, Kinds(kinds)) })
}

// FuzzBlockColumn checks blocks with arbitrary values in one column and correct
// checksums.
func FuzzBlockColumn(f *testing.F) {
	value := sealed(f, mixedRecords(f, 20)...)
	var r column.Reader
	if err := r.Open(value); err != nil {
		f.Fatal(err)
	}
	for i := range r.Len() {
		f.Add(string(r.Name(i)), []byte("\x00\x01\x02\x03\xff"), uint8(r.Values(i)), uint8(7), false)
		f.Add(string(r.Name(i)), []byte("\x02\x05\x06|\x0e\x0f|"), uint8(r.Values(i)), uint8(0), true)
	}
	f.Add(columnExact, []byte("\x01"), uint8(20), uint8(63), false)
	f.Fuzz(func(t *testing.T, name string, data []byte, values, shift uint8, texts bool) {
		if len(name) > 64 {
			return
		}
		var r column.Reader
		if err := r.Open(value); err != nil {
			t.Fatal(err)
		}
		w := column.NewWriter()
		for i := range r.Len() {
			if string(r.Name(i)) != name {
				copyColumn(t, w, &r, i)
			}
		}
		var numbers []uint64
		var all column.Buffer
		words := bytes.Split(data, []byte("|"))
		for i := range int(values) {
			numbers = append(numbers, uint64(append(data, 0)[i%(len(data)+1)])<<(shift%64))
			all.Add(words[i%len(words)])
		}
		if texts {
			w.Texts(name, &all)
		} else {
			w.Numbers(name, numbers)
		}
		readBlock(t, w.Finish(nil, r.Rows()), AllKinds)
	})
}

// copyColumn adds column i of r to w.
func copyColumn(t *testing.T, w *column.Writer, r *column.Reader, i int) {
	t.Helper()
	var n column.Numbers
	var texts column.Texts
	var numbers []uint64
	var all column.Buffer
	if r.Numbers(i, &n) == nil {
		for j := range r.Values(i) {
			numbers = append(numbers, n.At(j))
		}
	} else if err := r.Texts(i, &texts); err != nil {
		t.Fatal(err)
	} else {
		for j := range r.Values(i) {
			all.Add(texts.At(j))
		}
	}
	w.Numbers(string(r.Name(i)), numbers)
	w.Texts(string(r.Name(i)), &all)
}

// TestKindNames checks that each kind has columns.
func TestKindNames(t *testing.T) {
	for k := KindGreeting; k <= KindReference; k++ {
		if kindNames[k] == "" || strings.HasPrefix(kindNames[k], "kind-") {
			t.Errorf("kind %d has no name", k)
		}
	}
}
