package export

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/prefix"
	"scanwatch/internal/text"
)

// This file contains the formats for human readers, spreadsheets and
// scripts.

func writePlain(w *bufio.Writer, l *List) {
	for i := range l.Entries {
		fmt.Fprintln(w, prefix.String(l.Entries[i].Prefix))
	}
}

func changePlain(w *bufio.Writer, c *Changes) {
	for i := range c.Remove {
		fmt.Fprintln(w, "-"+prefix.String(c.Remove[i].Prefix))
	}
	for i := range c.Add {
		fmt.Fprintln(w, "+"+prefix.String(c.Add[i].Prefix))
	}
}

// printable returns a copy of e with printable texts.
func (e *Entry) printable() Entry {
	c := *e
	c.Organisation, c.Reason = text.Escape(e.Organisation), text.Escape(e.Reason)
	c.Evidence = make([]string, len(e.Evidence))
	for i, token := range e.Evidence {
		c.Evidence[i] = text.Escape(token)
	}
	return c
}

// A jsonEntry is an entry with times in the format of JSON output.
type jsonEntry struct {
	Entry
	First   text.Time `json:"first,omitzero"`
	Last    text.Time `json:"last,omitzero"`
	Expires text.Time `json:"expires"`
}

func (e *Entry) json() jsonEntry {
	c := e.printable()
	return jsonEntry{c, text.At(c.First), text.At(c.Last), text.At(c.Expires)}
}

func writeJSON(w *bufio.Writer, l *List) {
	out := json.NewEncoder(w)
	for i := range l.Entries {
		_ = out.Encode(l.Entries[i].json()) // w stores the error until it is flushed
	}
}

func changeJSON(w *bufio.Writer, c *Changes) {
	out := json.NewEncoder(w)
	for i := range c.Remove {
		_ = out.Encode(struct {
			Change  string       `json:"change"`
			Prefix  netip.Prefix `json:"prefix"`
			Expires text.Time    `json:"expires"`
		}{"remove", c.Remove[i].Prefix, text.At(c.Remove[i].Expires)})
	}
	for i := range c.Add {
		_ = out.Encode(struct {
			Change string `json:"change"`
			jsonEntry
		}{"add", c.Add[i].json()})
	}
}

var columns = []struct {
	name  string
	value func(*Entry) string
}{
	{"prefix", func(e *Entry) string { return e.Prefix.String() }},
	{"kind", func(e *Entry) string { return string(e.Kind) }},
	{"first", func(e *Entry) string { return utcOrNone(e.First) }},
	{"last", func(e *Entry) string { return utcOrNone(e.Last) }},
	{"sessions", func(e *Entry) string { return strconv.Itoa(e.Sessions) }},
	{"evidence", func(e *Entry) string { return strings.Join(e.Evidence, " ") }},
	{"organisation", func(e *Entry) string { return e.Organisation }},
	{"confidence", func(e *Entry) string { return e.Confidence }},
	{"reason", func(e *Entry) string { return e.Reason }},
	{"expires", func(e *Entry) string { return utc(e.Expires) }},
}

func utcOrNone(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return utc(t)
}

func writeCSV(w *bufio.Writer, l *List) {
	c := csv.NewWriter(w)
	cells := make([]string, len(columns))
	for i := range columns {
		cells[i] = columns[i].name
	}
	_ = c.Write(cells)
	for i := range l.Entries {
		e := l.Entries[i].printable()
		for j := range columns {
			cells[j] = text.Cell(columns[j].value(&e))
		}
		_ = c.Write(cells)
	}
	c.Flush()
}
