package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// rulesOf reads the rule texts of sessions that ended since the given time.
func rulesOf(t *testing.T, dir string, since time.Time) map[uint32]string {
	t.Helper()
	r := Reader{Dir: dir, Rules: map[uint32]string{}, Problem: func(segment string, err error) { t.Errorf("%s: %v", segment, err) }}
	if err := r.Each(since, time.Time{}, AllKinds, func(*Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	return r.Rules
}

func want(t *testing.T, got map[uint32]string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if got[RuleRef(text)] != text {
			t.Errorf("%q is %q", text, got[RuleRef(text)])
		}
	}
	if len(got) != len(texts) {
		t.Errorf("%d texts, want %d: %v", len(got), len(texts), got)
	}
}

// TestRules checks that each segment has the texts of both the old and the new policy. A session
// may end after a policy change, or on the next day. After a restart, the Writer must add texts to
// a segment that already contains some.
func TestRules(t *testing.T) {
	dir := t.TempDir()
	w, _ := openTest(t, dir, Options{})
	add(w, noon, 1)
	flush(t, w)
	w.Rules([]string{"rule a", "rule b"})
	add(w, noon.Add(time.Second), 2)
	flush(t, w)
	w.Rules([]string{"rule a", "rule b changed"})
	add(w, noon.Add(24*time.Hour), 3)
	flush(t, w)
	w.Close()
	want(t, rulesOf(t, dir, time.Time{}), "rule a", "rule b", "rule b changed")
	want(t, rulesOf(t, dir, noon.Add(24*time.Hour)), "rule a", "rule b", "rule b changed")

	w, _ = openTest(t, dir, Options{})
	w.Rules([]string{"rule c"})
	add(w, noon.Add(25*time.Hour), 4)
	flush(t, w)
	w.Close()
	want(t, rulesOf(t, dir, noon.Add(24*time.Hour)), "rule a", "rule b", "rule b changed", "rule c")
}

// TestRulesAreBounded checks that frequent rule changes do not fill the disk.
func TestRulesAreBounded(t *testing.T) {
	var r *ruleTexts
	text := func(i int) string { return "rule " + strings.Repeat("x", i) }
	for i := range 2000 {
		if r = r.with([]string{text(i), "rule same"}); r.bytes > maxRuleTexts {
			t.Fatalf("%d bytes", r.bytes)
		}
		if r.text[RuleRef(text(i))] != text(i) {
			t.Fatal("the newest is missing")
		}
	}
	if n := len(r.text); n < 30 {
		t.Errorf("only %d texts", n)
	}
	var many []string
	for i := range 2000 {
		many = append(many, text(i))
	}
	if r := r.with(many); r.bytes > maxRuleTexts || r.text[RuleRef(text(0))] != text(0) {
		t.Errorf("one policy of %d bytes", r.bytes)
	}
	long := text(maxRuleText)
	if got := r.with([]string{long}).text[RuleRef(long)]; len(got) != maxRuleText+4 || !strings.HasSuffix(got, " ...") {
		t.Errorf("%d bytes", len(got))
	}
}

// TestRepairKeepsRules checks that a repair copies the readable rule texts of a corrupt
// segment to the new segment.
func TestRepairKeepsRules(t *testing.T) {
	dir := t.TempDir()
	w, _ := openTest(t, dir, Options{})
	w.Rules([]string{"rule a"})
	add(w, noon, 1)
	flush(t, w)
	w.Close()
	path := filepath.Join(dir, sessionsDir, "2026-11-01.db")
	db, err := bbolt.Open(path, 0o640, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketSessions).Put(AppendKey(nil, noon, 99), []byte{0xff}) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	found(t, dir, true)
	if _, err := os.Stat(path); err == nil {
		t.Fatal("was not quarantined")
	}
	r := Reader{Dir: dir, Rules: map[uint32]string{}}
	if err := r.Each(time.Time{}, time.Time{}, AllKinds, func(*Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	want(t, r.Rules, "rule a")
}

// TestRuleKey checks that ruleKey rejects keys that do not belong to a rule's text.
func TestRuleKey(t *testing.T) {
	for key, ok := range map[string]bool{"rule-0000abcd": true, "rule-": false, "rule-xyz": false, "schema": false, "rule-123456789": false} {
		if _, got := ruleKey([]byte(key)); got != ok {
			t.Errorf("%q: %v", key, got)
		}
	}
}
