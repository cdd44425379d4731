package store

// The texts of rules. A verdict names a rule; what the rule said then is kept in
// the segment with it, so that it can still be read when the configuration has
// long become another one, and goes when the verdict goes.

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"go.etcd.io/bbolt"
)

const (
	maxRuleText  = 4 << 10   // bytes of a rule's text that are kept
	maxRuleTexts = 128 << 10 // bytes of all that come with a batch
)

// RuleRef is what a Step knows the text of a rule by: four bytes of its SHA-256,
// never 0. It need only tell the versions of one rule apart.
func RuleRef(text string) uint32 {
	sum := sha256.Sum256([]byte(text))
	return max(binary.BigEndian.Uint32(sum[:]), 1)
}

// ruleTexts are texts by their RuleRef. They are never changed, but replaced.
type ruleTexts struct {
	text  map[uint32]string
	bytes int
}

// with returns the texts of r and those of a policy that comes now. Sessions that
// the policies before have judged may still be going on, so that these are
// dropped only when there are too many. A policy that has too many by itself, which
// would not fit into a segment, has its first ones kept.
func (r *ruleTexts) with(texts []string) *ruleTexts {
	next := &ruleTexts{text: make(map[uint32]string)}
	for _, t := range texts {
		ref := RuleRef(t)
		if len(t) > maxRuleText {
			t = strings.ToValidUTF8(t[:maxRuleText], "") + " ..."
		}
		if next.bytes+len(t) > maxRuleTexts {
			break
		}
		next.text[ref] = t
		next.bytes += len(t)
	}
	if r != nil && r.bytes+next.bytes <= maxRuleTexts {
		maps.Copy(next.text, r.text)
		next.bytes += r.bytes // those in both count twice, and are dropped the sooner
	}
	return next
}

// Rules takes the texts of the rules of a policy, which must come before it is
// followed. The segments to which verdicts go get them, too.
func (w *Writer) Rules(texts []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules = w.rules.with(texts)
}

// putRules writes texts to a segment.
func putRules(tx *bbolt.Tx, rules *ruleTexts) error {
	if rules == nil {
		return nil
	}
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return damaged("the bucket of meta data is missing")
	}
	for ref, text := range rules.text {
		key := fmt.Appendf(nil, "%s%08x", keyRule, ref)
		if string(meta.Get(key)) == text {
			continue
		}
		if err := meta.Put(key, []byte(text)); err != nil {
			return err
		}
	}
	return nil
}

// readRules adds the texts of a segment to all.
func readRules(meta *bbolt.Bucket, all map[uint32]string) {
	c := meta.Cursor()
	for k, v := c.Seek([]byte(keyRule)); strings.HasPrefix(string(k), keyRule); k, v = c.Next() {
		if ref, ok := ruleKey(k); ok {
			all[ref] = string(v)
		}
	}
}

// ruleKey is the RuleRef in a key of the meta data, if it is that of a rule.
func ruleKey(key []byte) (uint32, bool) {
	digits, ok := strings.CutPrefix(string(key), keyRule)
	ref, err := strconv.ParseUint(digits, 16, 32)
	return uint32(ref), ok && err == nil
}
