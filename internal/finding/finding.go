// Package finding describes the findings of recorded sessions as text and JSON.
package finding

import (
	"fmt"
	"io"
	"strings"

	"scanwatch/filter/lookup"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// Columns is the width of a terminal.
const Columns = 80

// A Finding is a kind of evidence with its proof. All text is printable.
type Finding struct {
	Evidence     string `json:"evidence"`
	Organisation string `json:"organisation,omitempty"`
	By           string `json:"by"`
	Match        string `json:"match,omitempty"`
	Proof        string `json:"proof,omitempty"`
	Confidence   string `json:"confidence,omitempty"`
	List         string `json:"list,omitempty"`   // name of the shipped list that matched
	Line         int    `json:"line,omitempty"`   // line number in List
	Source       string `json:"source,omitempty"` // origin of that line's data
}

// New returns the finding in a step of session r. If a shipped list matched, the finding includes
// the list's row.
func New(lists *lookup.Lists, r *store.Record, step *store.Step) Finding {
	p := text.Escape[[]byte]
	f := Finding{
		Evidence: p(step.Text), Organisation: p(step.Org), By: p(step.By),
		Match: p(step.Match), Proof: p(step.Arg), Confidence: p(step.Confidence),
	}
	if f.Proof == "" { // the record's header holds the proof
		switch f.By {
		case "rdns":
			f.Proof = p(r.RDNS)
		case "cidr":
			f.Proof = r.Src.Addr().String()
		}
	}
	for _, row := range lists.Rows() {
		if row.Value == string(step.Match) && row.Evidence == string(step.Text) && (len(step.Org) == 0 || row.Org == string(step.Org)) {
			f.Match, f.List, f.Line, f.Source = row.Value, row.List, row.Line, row.Source
			break
		}
	}
	return f
}

// DNSList returns the name and the zone of the DNS list that f is about, or "". If the zone
// contains an account key, the key is omitted.
func (f *Finding) DNSList() (name, zone string) {
	if f.Evidence != rules.Listed.String() {
		return "", ""
	}
	name, zone, _ = strings.Cut(f.Match, " ")
	return name, strings.TrimPrefix(zone, rules.KeyMark+".")
}

// Text writes f as a paragraph.
func (f *Finding) Text(w io.Writer) {
	head := fmt.Sprintf("  ! %s by %s", f.Evidence, f.By)
	if f.Confidence != "" {
		head += ", confidence " + f.Confidence
	}
	if f.Organisation != "" {
		head += ", " + f.Organisation
	}
	fmt.Fprintln(w, text.Wrap(head, Columns, 4))
	line := func(name, value string) {
		fmt.Fprintln(w, text.Wrap(fmt.Sprintf("    %-8s%s", name, value), Columns, 12))
	}
	if f.Proof != "" {
		line("proof", f.Proof)
	}
	switch {
	case f.List != "":
		line("row", fmt.Sprintf("%s, line %d of list %s", f.Match, f.Line, f.List))
		line("source", f.Source)
	case f.Match != "" && f.Match != f.Proof:
		line("match", f.Match)
	}
}
