package rules

import (
	"errors"
	"strings"
	"testing"
)

// TestRemovedWords checks the error for a word of an earlier version. The error must contain the
// replacement. Errors in other lines must be reported as well.
func TestRemovedWords(t *testing.T) {
	for line, want := range map[string]string{
		"privacy default":     "privacy default is now: privacy full",
		"privacy strict":      "privacy strict is now: privacy hashed",
		"privacy nosuch":      "valid are: full, hashed",
		"detail lean":         "remove the line: all sessions are recorded in detail",
		"detail full":         "remove the line: all sessions are recorded in detail",
		`events "/var/run/x"`: "`scanwatch watch --json` prints the events",
		"rule a phase rcpt-to match evidence campaign reject": "by site",
		"escalate none": "ban { 10m, 1h, 1d, 7d }",
	} {
		_, err := parse("mode observe\n" + line + "\n")
		if word, _, _ := strings.Cut(line, " "); err == nil && (word == "escalate" || TokenByName("campaign") != nil && strings.Contains(line, "campaign")) {
			continue // this line is still valid
		}
		var es Errors
		if !errors.As(err, &es) || len(es) != 1 || es[0].Line != 2 || !strings.Contains(es[0].Hint, want) {
			t.Errorf("%s: %v, hint %q; want %q", line, err, es.Detail(), want)
		}
	}
}

// TestReplacementsAreValid checks that no removed word is still valid.
func TestReplacementsAreValid(t *testing.T) {
	for _, line := range []string{"privacy full", "privacy hashed"} {
		if _, err := parse(line + "\n"); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}
