package store

// A segment stores the text of each rule that its verdicts refer to. The text
// therefore remains available after a configuration change and expires together
// with the verdicts.

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
	maxRuleText  = 4 << 10   // maximum bytes of a rule's text
	maxRuleTexts = 128 << 10 // maximum bytes of all texts together
)

// RuleRef returns the value of Step.Rule for a rule's text: four bytes of the text's SHA-256 hash,
// but never 0. The value only has to distinguish versions of the same rule.
func RuleRef(text string) uint32 {
	sum := sha256.Sum256([]byte(text))
	return max(binary.BigEndian.Uint32(sum[:]), 1)
}

// ruleTexts maps a RuleRef to an immutable text.
type ruleTexts struct {
	text  map[uint32]string
	bytes int
}

// with returns the texts in r together with a new policy's texts. Previous texts are
// kept if they fit within the limit, because open sessions may refer to them. If the
// new texts alone exceed the limit, only the first of them are kept.
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
		next.bytes += r.bytes // an upper bound: a text in both is counted twice
	}
	return next
}

// Rules sets the rule texts of a policy, which the Writer adds to the segments.
// Rules must be called before the policy is used.
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
		return damaged("the metadata bucket is missing")
	}
	for ref, text := range rules.text {
		key := []byte(ruleName(ref))
		if string(meta.Get(key)) == text {
			continue
		}
		if err := meta.Put(key, []byte(text)); err != nil {
			return err
		}
	}
	return nil
}

// ruleName returns the key of a text in the metadata.
func ruleName(ref uint32) string { return fmt.Sprintf("%s%08x", keyRule, ref) }

// ruleKey returns the RuleRef in a key of the metadata, or false if the key does not
// belong to a rule's text.
func ruleKey(key []byte) (uint32, bool) {
	digits, ok := strings.CutPrefix(string(key), keyRule)
	ref, err := strconv.ParseUint(digits, 16, 32)
	return uint32(ref), ok && err == nil
}
