// Package forward passes the running filter's events to other programs: it sends batches of events
// to a URL, to syslog or to standard output, and reports to AbuseIPDB.
//
// Events are aggregated by source and window. Each queued batch is delivered at least once. Events
// that no batch contains are counted.
package forward

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"scanwatch/filter/events"
	"scanwatch/internal/text"
)

// Version is the version of the Batch format.
const Version = 1

// A Batch contains the events of one window, the time between two batches.
type Batch struct {
	Version int       `json:"version"`
	ID      string    `json:"id"` // unchanged if the batch is sent again
	Host    string    `json:"host"`
	From    time.Time `json:"from"`
	Until   time.Time `json:"until"`
	Events  []*Item   `json:"events"`
	// Dropped is the number of events lost since the previous batch.
	Dropped uint64 `json:"dropped"`
	// Gaps is the number of lost connections to the filter since the previous batch, plus the
	// number of restarts of the service. The number of events that were missed in a gap is unknown.
	Gaps uint64 `json:"gaps"`
}

// An Item is a group of identical events concerning one source. Names, greetings and other text
// come from the first event.
type Item struct {
	Event      string    `json:"event"`
	Src        string    `json:"src,omitempty"`
	Prefix     string    `json:"prefix,omitempty"`
	Count      int       `json:"count"`
	First      time.Time `json:"first"`
	Last       time.Time `json:"last"`
	Sessions   []string  `json:"sessions,omitempty"` // the first ones
	Evidence   string    `json:"evidence,omitempty"`
	Confidence string    `json:"confidence,omitempty"`
	Org        string    `json:"org,omitempty"`
	By         string    `json:"by,omitempty"`
	Match      string    `json:"match,omitempty"`
	RDNS       string    `json:"rdns,omitempty"`
	FCrDNS     string    `json:"fcrdns,omitempty"`
	Helo       string    `json:"helo,omitempty"`
	Rule       string    `json:"rule,omitempty"`
	Phase      string    `json:"phase,omitempty"`
	Decision   string    `json:"decision,omitempty"`
	Would      string    `json:"would,omitempty"`
	Tag        string    `json:"tag,omitempty"`
	Until      time.Time `json:"until,omitzero"`
	Listed     bool      `json:"listed,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}

// Limits of a batch.
const (
	maxItems    = 1000
	maxSessions = 3
)

// A kind identifies events that are counted together.
type kind struct {
	src                                                                            netip.Addr
	event, prefix, evidence, confidence, rule, phase, decision, would, tag, reason string
}

// A window collects events, and may be used concurrently.
type window struct {
	host string

	mu      sync.Mutex
	items   map[kind]*Item
	order   []*Item
	from    time.Time
	missing losses
}

// add adds an event.
func (w *window) add(e *events.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := kind{e.Src, e.Event, e.Prefix, e.Evidence, e.Confidence, e.Rule, e.Phase, e.Decision, e.Would, e.Tag, e.Reason}
	i := w.items[k]
	switch {
	case i == nil && len(w.order) >= maxItems:
		w.missing.events++
		return
	case i == nil:
		i = itemOf(e)
		if w.items == nil {
			w.items = map[kind]*Item{}
		}
		w.items[k] = i
		w.order = append(w.order, i)
	}
	i.Count++
	i.Last = later(i.Last, e.Time)
	i.Until = later(i.Until, e.Until)
	if e.Session != 0 && len(i.Sessions) < maxSessions {
		if id := fmt.Sprintf("%016x", e.Session); !slices.Contains(i.Sessions, id) {
			i.Sessions = append(i.Sessions, id)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func itemOf(e *events.Event) *Item {
	i := &Item{
		Event: e.Event, Prefix: e.Prefix, Listed: e.Listed, First: e.Time, Last: e.Time, Evidence: e.Evidence, Confidence: e.Confidence, Org: e.Org, By: e.By, Match: e.Match,
		RDNS: string(e.RDNS), FCrDNS: e.FCrDNS, Helo: string(e.Helo), Rule: e.Rule, Phase: e.Phase, Decision: e.Decision, Would: e.Would,
		Tag: e.Tag, Until: e.Until, Reason: e.Reason,
	}
	if e.Src.IsValid() {
		i.Src = e.Src.String()
	}
	return i
}

// lose records losses.
func (w *window) lose(more losses) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.missing = w.missing.plus(more)
}

// empty reports whether the window has no events.
func (w *window) empty() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.order) == 0
}

// lost returns the losses since the previous call.
func (w *window) lost() losses {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.missing
	w.missing = losses{}
	return l
}

// take returns a batch with the given losses and the events since the previous call. If there are
// none, it returns nil.
func (w *window) take(now time.Time, lost losses) *Batch {
	w.mu.Lock()
	defer w.mu.Unlock()
	from := w.from
	w.from = now
	if len(w.order) == 0 && lost == (losses{}) {
		return nil
	}
	b := &Batch{Version: Version, ID: fmt.Sprintf("%x-%x", now.UnixNano(), processID), Host: w.host, From: from.UTC(), Until: now.UTC(),
		Events: w.order, Dropped: lost.events, Gaps: lost.gaps}
	if b.Events == nil {
		b.Events = []*Item{}
	}
	w.items, w.order = nil, nil
	return b
}

// count returns the number of events in b plus the number of events that b reports as dropped.
func (b *Batch) count() uint64 {
	n := b.Dropped
	for _, i := range b.Events {
		n += uint64(i.Count)
	}
	return n
}

// encode returns v as JSON in one line of printable ASCII.
func encode(v any) []byte {
	var b bytes.Buffer
	_ = text.JSON(&b, v, "") // encoding strings, numbers and times cannot fail
	return events.AppendASCII(nil, b.Bytes())
}

// decodeBatch decodes a batch.
func decodeBatch(data []byte) (*Batch, error) {
	b := new(Batch)
	return b, json.Unmarshal(data, b)
}

// summary describes an item in one line, without text from clients.
func (i *Item) summary() string {
	var b strings.Builder
	b.WriteString(i.Event)
	who := i.Src
	if i.Event == "ban" || i.Event == "unban" || who == "" {
		who = i.Prefix
	}
	fmt.Fprintf(&b, " %s", who)
	for _, p := range []struct{ word, value string }{{"evidence", i.Evidence}, {"confidence", i.Confidence}, {"by", i.Org}, {"rule", i.Rule},
		{"decision", i.Decision}, {"would", i.Would}, {"tag", i.Tag}, {"by", i.operator()}, {"reason", i.Reason}} {
		if p.value != "" {
			fmt.Fprintf(&b, " %s %s", p.word, p.value)
		}
	}
	if !i.Until.IsZero() {
		b.WriteString(" until " + i.Until.UTC().Format(time.RFC3339))
	}
	if i.Count > 1 {
		fmt.Fprintf(&b, " (%d times)", i.Count)
	}
	return text.Escape(b.String())
}

// operator returns "the operator" if the operator's command caused the event, or "".
func (i *Item) operator() string {
	if i.By == "operator" {
		return "the " + i.By
	}
	return ""
}

// lines describes a batch for human readers, in at most n lines and without low-confidence
// findings.
func (b *Batch) lines(n int) (all []string) {
	more := 0
	for _, i := range b.Events {
		switch {
		case i.Event == "finding" && i.Confidence == "low":
		case len(all) == n:
			more++
		default:
			all = append(all, i.summary())
		}
	}
	if more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	if b.Dropped > 0 {
		all = append(all, fmt.Sprintf("%d events are missing", b.Dropped))
	}
	if b.Gaps > 0 {
		all = append(all, text.Plural(b.Gaps, "start of the service or reconnection to the filter", "starts of the service or reconnections to the filter")+": events may be missing")
	}
	return all
}
