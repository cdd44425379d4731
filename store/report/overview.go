package report

import (
	"time"

	"scanwatch/internal/text"
)

// A Page is the HTML report, with the summary of the period and further information for
// operators. All text is printable.
type Page struct {
	*Summary
	Site    Site
	Bans    Bans
	Before  Before
	Returns *ReturnSummary // nil: omitted
}

// A Site describes the filter and its policy at the time of the report.
type Site struct {
	Made    time.Time
	Server  string // name; empty if unknown
	Mode    string // observe or enforce; empty if unknown
	Policy  string // path of the configuration; empty without one
	Rules   int    // number of rules; 0 if unknown
	Running bool   // Mode and Rules describe the running filter
	Halted  bool   // the operator has stopped enforcement
}

// String describes the mode and its origin.
func (s *Site) String() string {
	policy := "no configuration"
	if s.Policy != "" {
		policy = s.Policy
	}
	if s.Rules > 0 {
		policy += ", " + text.Plural(s.Rules, "rule")
	}
	switch {
	case s.Halted:
		policy += "; the operator has stopped enforcement"
	case !s.Running && s.Policy != "":
		policy += "; the filter is not running"
	}
	return policy
}

// Bans lists the active bans.
type Bans struct {
	List    []ActiveBan // the newest first
	More    int         // number of further bans
	Problem string      // the reason why the bans are unknown
}

// An ActiveBan is a ban on a host or network that has not ended yet.
type ActiveBan struct {
	Prefix   string
	Name     string // reverse DNS name and organisation; may be empty
	Rule     string // name of the rule, or the operator's reason
	On       string // the other host that imposed the ban, as in " on mx1"; empty for this host
	Since    time.Time
	Until    time.Time
	Times    int // consecutive offences, including this one
	Attempts int // connections during the ban
	Manual   bool
	Observed bool // the ban is not enforced
}

// Figures holds the main figures of a period, without local and authenticated sessions.
type Figures struct{ Sessions, Addresses, Found, Refused, Observed, Mails, RcptPermfail int }

// FiguresOf returns the figures of a summary.
func FiguresOf(s *Summary) Figures {
	return Figures{s.Remote.Sessions, s.Addresses, s.Remote.Found, s.Remote.Refused, s.Remote.Observed, s.Remote.Mails, s.Remote.RcptPermfail}
}

// Before holds the figures for the preceding period of the same length.
type Before struct {
	Since, Until time.Time
	Figures      Figures
	Missing      string // the reason for omitting the comparison
}
