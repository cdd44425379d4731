package control

import (
	"errors"
	"testing"
)

// TestSource checks the commands with which a milter receives sessions from a log, and the status
// of that log.
func TestSource(t *testing.T) {
	var log Log
	serving, got := false, ""
	c := connect(t, &Server{Commands: log.Commands(func() bool { return serving }, func(facts string) (bool, error) {
		if facts == "bad" {
			return false, errors.New("not facts")
		}
		got = facts
		return serving, nil
	})})
	status := SourceStatus{Kind: "postfix", File: "/var/log/mail.log", Lines: 3, Samples: []string{`"a" b`}}
	for _, serving = range []bool{false, true} {
		for name, err := range map[string]error{"source": SendSource(c, &status), "session": SendSession(c, "e30")} {
			if (err == nil) != serving {
				t.Errorf("%s, serving %t: %v", name, serving, err)
			}
		}
		if s := log.Status(); (s != nil) != serving || s != nil && (s.File != status.File || s.Samples[0] != status.Samples[0] || s.Problem != "") {
			t.Errorf("serving %t: %+v", serving, s)
		}
	}
	serving = false
	unread := SourceStatus{File: "/var/log/mail.log", Problem: "no such file"}
	if err := SendSource(c, &unread); err != nil || log.Status().Problem != unread.Problem {
		t.Errorf("unreadable log: %v, %+v", err, log.Status())
	}
	if err := SendSession(c, "bad"); err == nil || got != "e30" {
		t.Errorf("%v, %q", err, got)
	}
	log.heard = log.heard.Add(-sourceSilence - 1)
	if s := log.Status(); s.Problem == "" {
		t.Error("the status does not show that the log is no longer read")
	}
}
