package export

import (
	"bufio"
	"encoding/json"
	"fmt"
	"time"

	"scanwatch/internal/prefix"
)

// CrowdSec's cscli command reads this format. Entries must be disjoint, because
// deleting an address also deletes the networks that contain it.

type decision struct {
	Duration string `json:"duration"`
	Origin   string `json:"origin"`
	Reason   string `json:"reason"`
	Scope    string `json:"scope"`
	Type     string `json:"type"`
	Value    string `json:"value"`
}

func (e *Entry) decision(made time.Time) decision {
	d := decision{Duration: fmt.Sprintf("%ds", e.left(made)), Origin: "scanwatch", Reason: "scanwatch: " + e.why(), Scope: "Ip", Type: "ban", Value: prefix.String(e.Prefix)}
	if !e.Prefix.IsSingleIP() {
		d.Scope = "Range"
	}
	return d
}

func writeCrowdSec(w *bufio.Writer, l *List) {
	fmt.Fprint(w, "[")
	for i := range l.Entries {
		if i > 0 {
			fmt.Fprint(w, ",")
		}
		line, _ := json.Marshal(l.Entries[i].decision(l.Made)) // cannot fail, because all fields are strings
		fmt.Fprintf(w, "\n%s", line)
	}
	fmt.Fprint(w, "\n]\n")
}

func changeCrowdSec(w *bufio.Writer, c *Changes) {
	flag := func(e *Entry) string {
		if e.Prefix.IsSingleIP() {
			return "--ip " + e.Prefix.Addr().String()
		}
		return "--range " + e.Prefix.String()
	}
	for i := range c.Remove {
		fmt.Fprintf(w, "cscli decisions delete %s\n", flag(&c.Remove[i]))
	}
	for i := range c.Add {
		d := c.Add[i].decision(c.Made)
		fmt.Fprintf(w, "cscli decisions add %s --duration %s --type ban --reason '%s'\n", flag(&c.Add[i]), d.Duration, d.Reason)
	}
}

// fail2ban reads this format as a log. Each line starts with the time of the host's
// last session. contrib/fail2ban/filter.d/scanwatch-export.conf matches the lines.

func writeFail2ban(w *bufio.Writer, l *List) {
	for i := range l.Entries {
		e := &l.Entries[i]
		at := e.Last
		if at.IsZero() {
			at = l.Made
		}
		fmt.Fprintf(w, "%s scanwatch export: src=%s until=%s why=\"%s\"\n", utc(at), prefix.String(e.Prefix), utc(e.Expires), e.why())
	}
}

func changeFail2ban(w *bufio.Writer, c *Changes) {
	commands(w, "fail2ban-client set scanwatch-export unbanip", c.Remove)
	commands(w, "fail2ban-client set scanwatch-export banip", c.Add)
}
