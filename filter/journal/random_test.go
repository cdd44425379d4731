package journal

import (
	"math/rand/v2"

	"scanwatch/internal/smtp"
	"scanwatch/store"
)

type random struct{ *rand.Rand }

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 1))} }

func (r random) of(words ...string) string { return words[r.IntN(len(words))] }

// steps returns random steps. The steps contain only a few different texts.
func (r random) steps() (all []store.Step) {
	for range r.IntN(30) {
		s := store.Step{Kind: store.Kind(r.IntN(int(store.KindReference)))}
		switch s.Kind {
		case store.KindHelo:
			s.Text, s.Result = []byte(r.of("a", "b", "c", "d", "e")), smtp.Result(r.IntN(4))
		case store.KindAuth:
			s.Text, s.Result = []byte(r.of("alice", "bob", "carol")), []smtp.Result{smtp.ResultFail, smtp.ResultError}[r.IntN(2)]
		case store.KindRcpt:
			s.Text, s.Result = []byte(r.of("x", "y", "z")+r.of("@example.org", "@EXAMPLE.org", "@example.net", "", "@")), smtp.Result(r.IntN(4))
		case store.KindFinding:
			s = finding(r.of("scanner", "cloud", "harvest", "flood"), r.of("", "One", "Two"), r.of("low", "medium", "high"))
		case store.KindVerdict, store.KindBan:
			s.Text, s.Enforced, s.Banned, s.Rule = []byte(r.of("r", "q")), r.IntN(2) == 0, r.IntN(2) == 0, uint32(r.IntN(2))
			s.Exempt = r.of("", "", "known", "login")
		case store.KindFilter:
			s.Phase, s.Decision = smtp.PhaseRcptTo, smtp.Decision(r.IntN(4))
		}
		all = append(all, s)
	}
	return all
}
