package followlog

import (
	"path/filepath"
	"testing"
	"time"

	"scanwatch/filter/serverlog"
	"scanwatch/internal/smtp"
)

// A counter counts ended sessions.
type counter struct{ ended int }

func (*counter) Site(string) {}
func (c *counter) Event(e *smtp.Event) {
	if e.Kind == smtp.EventDisconnect {
		c.ended++
	}
}
func (*counter) Ask(*smtp.Event) smtp.Answer { return smtp.Answer{} }

// TestIdle checks that the clock of an idle log advances with this host's clock. A KumoMTA session
// then ends a minute after its latest record.
func TestIdle(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	add(t, name, "")
	f := &Front{Kind: serverlog.ByName("kumomta"), File: name, Zone: time.UTC}
	f.tail.name = name
	if err := f.tail.open(nil); err != nil {
		t.Fatal(err)
	}
	defer f.tail.file.Close()
	var c counter
	f.begin(&c)
	add(t, name, `{"type":"Rejection","id":"","sender":"","recipient":"","response":{"code":501,"content":"Syntax error","command":"XYZZY"},"peer_address":{"name":"x.example","addr":"203.0.113.201"},"timestamp":1795200000,"session_id":"a"}`+"\n")
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	for i := range 4 * 59 { // four times a second
		if _, err := f.advance(now.Add(time.Duration(i) * time.Second / 4)); err != nil {
			t.Fatal(err)
		}
	}
	if c.ended != 0 || f.last != 1795200000e6 {
		t.Errorf("%d sessions have ended within a minute; the latest line is of %s", c.ended, time.UnixMicro(f.last))
	}
	for i := range 3 {
		if _, err := f.advance(now.Add(time.Minute + time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if c.ended != 1 {
		t.Errorf("%d sessions have ended after a minute", c.ended)
	}
}
