// Package total counts sessions in records, for tests of aggregates. The only code that it shares
// with the program is the record decoder.
package total

import (
	"bytes"
	"fmt"
	"net/netip"

	"scanwatch/internal/smtp"
	"scanwatch/store"
)

// Add adds the numbers of a record to all, by source and hour. It interprets records and aggregates
// according to the description of the format. It also counts the ids of sessions with a ban, and of
// sessions for which rejected returns true.
func Add(all map[string]int, r *store.Record, rejected func(id uint64) bool) error {
	source := r.Src.Addr()
	if source.Is6() {
		source = netip.PrefixFrom(source, 64).Masked().Addr()
	}
	key := fmt.Sprint(source, " ", r.End.UTC().Format("2 15h "))
	n := map[string]int{}
	most := map[string]int{}
	if r.Sessions > 0 {
		n["sessions"], n["found"], n["steps omitted"] = int(r.Sessions), int(r.Found), int(r.Omitted)
	} else {
		n["sessions"], n["steps omitted"] = 1, int(r.Omitted)
	}
	c := &r.Counts
	for i, v := range []uint32{c.Commands, c.Unknown, c.Failed, c.Mails, c.RcptOK, c.RcptPermfail, c.RcptTempfail, c.AuthPass, c.AuthFail, c.AuthRefused} {
		n[fmt.Sprint("count ", i)] = int(v)
	}
	if r.Sessions == 0 && rejected(r.ID) {
		n[fmt.Sprint("rejected ", r.ID)] = 1
	}
	filtered := false
	err := r.Steps(func(s *store.Step) bool {
		what := ""
		switch s.Kind {
		case store.KindHelo:
			what = "helo " + string(s.Text)
		case store.KindAuth:
			what = fmt.Sprintf("auth %s %v", s.Text, s.Result)
		case store.KindRcpt:
			skip := filtered
			filtered = false
			if r.Sessions == 0 && (skip || s.Result != smtp.ResultOK && s.Result != smtp.ResultPermfail) {
				return true
			}
			_, domain, _ := bytes.Cut(s.Text, []byte("@"))
			what = fmt.Sprintf("rcpt %s %v", bytes.ToLower(domain), s.Result)
		case store.KindFinding:
			what = "finding " + string(s.Text)
			if r.Sessions == 0 {
				n["found"] = 1
			}
		case store.KindVerdict, store.KindBan:
			what = fmt.Sprintf("rule %d %s %v %v %s", s.Kind, s.Text, s.Enforced, s.Banned, s.Exempt)
		case store.KindReference:
			n[fmt.Sprint("rejected ", s.Session)] = 1
			return true
		case store.KindFilter:
			filtered = s.Phase == smtp.PhaseRcptTo && s.Decision >= smtp.Reject
			return true
		default:
			return true
		}
		steps, in := "steps with "+what, "sessions with "+what
		if r.Sessions > 0 {
			n[in] += int(s.Times)
			if s.Count > 0 {
				n[steps] += int(s.Count)
			}
			most["most of "+what] = max(most["most of "+what], int(s.Most))
			return true
		}
		n[in] = 1
		if s.Kind == store.KindRcpt || s.Kind == store.KindAuth {
			n[steps]++
			most["most of "+what] = n[steps]
		}
		return true
	})
	for k, v := range n {
		if v > 0 {
			all[key+k] += v
		}
	}
	for k, v := range most {
		if v > 0 {
			all[key+k] = max(all[key+k], v)
		}
	}
	return err
}
