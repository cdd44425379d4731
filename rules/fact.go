package rules

import (
	"fmt"
	"strconv"
	"strings"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
)

// A fact function describes the fact that a condition checks. Text from the network is
// quoted and truncated.

func factSrc(_ *Cond, f *Facts) string {
	if !f.Src.IsValid() {
		return "no address"
	}
	return f.Src.String()
}

func factListener(_ *Cond, f *Facts) string { return f.Dst.String() }

func factRDNS(_ *Cond, f *Facts) string {
	switch {
	case len(f.RDNS) == 0:
		return "no name"
	case f.RDNSCut:
		return quoteFact(f.RDNS) + ", possibly truncated"
	}
	return quoteFact(f.RDNS)
}

func factFCrDNS(_ *Cond, f *Facts) string { return f.FCrDNS.String() }

func factASN(_ *Cond, f *Facts) string {
	if !f.ASNKnown {
		return "not looked up"
	}
	return "AS" + strconv.FormatUint(uint64(f.ASN), 10)
}

func factCountry(_ *Cond, f *Facts) string {
	if f.Country == "" {
		return "not looked up"
	}
	return quoteFact([]byte(f.Country))
}

func factEvidence(c *Cond, f *Facts) string {
	var mask Evidence
	for _, v := range c.Values {
		mask |= TokenByName(v.Text).Evidence
	}
	proven, weak := (f.Evidence & mask).String(), (f.Weak &^ f.Evidence & mask).String()
	switch {
	case proven != "" && weak != "":
		return proven + "; weak: " + weak
	case weak != "":
		return "weak: " + weak
	case proven == "":
		return "none"
	}
	return proven
}

func factScore(_ *Cond, f *Facts) string { return strconv.Itoa(f.total) }

func factStanding(_ *Cond, f *Facts) string { return f.Standing.String() }

func factFailed(_ *Cond, f *Facts) string {
	if len(f.Failed) == 0 {
		return "no failed login"
	}
	var users []string
	for _, u := range f.Failed {
		users = append(users, quoteFact(u))
	}
	return strings.Join(users, ", ")
}

func factCount(c *Cond, f *Facts) string {
	e := TokenByName(c.Values[0].Text).Evidence
	if f.spares(e) {
		return "the recipient exists"
	}
	if c.Window == 0 {
		return strconv.FormatUint(uint64(f.Counts[e.Index()]), 10)
	}
	if f.Window != nil {
		if n, ok := f.Window.Count(f, e, c.Window, c.By); ok {
			return strconv.Itoa(n)
		}
	}
	return "not counted"
}

func factHelo(_ *Cond, f *Facts) string {
	if len(f.Helo) == 0 {
		return "no greeting"
	}
	return quoteFact(f.Helo)
}

func factMailFrom(_ *Cond, f *Facts) string {
	if f.Phase < smtp.PhaseMailFrom {
		return "no sender yet"
	}
	return "<" + quoteFact(f.MailFrom) + ">"
}

func factRcptTo(_ *Cond, f *Facts) string {
	if f.Phase != smtp.PhaseRcptTo {
		return "no recipient"
	}
	return "<" + quoteFact(f.RcptTo) + ">"
}

func factAuth(_ *Cond, f *Facts) string {
	switch {
	case f.Local:
		return "local"
	case !f.Auth:
		return "not logged in"
	}
	return fmt.Sprintf("logged in as %s", quoteFact(f.User))
}

func factTLS(_ *Cond, f *Facts) string {
	if f.TLS {
		return "TLS"
	}
	return "no TLS"
}

// maxFact is the maximum length of a text within a fact, in bytes.
const maxFact = 100

func quoteFact(b []byte) string {
	if len(b) > maxFact {
		return text.Quote(b[:maxFact]) + "..."
	}
	return text.Quote(b)
}
