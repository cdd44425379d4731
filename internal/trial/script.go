package trial

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// A Step is an action by the client or an answer by the server in a Script.
// Kind is a name from StepKinds.
type Step struct{ Kind, Text string }

// stepKinds lists the kinds of steps. Each kind has a template, which is the recorded step without
// its argument. Kinds that share a store.Kind represent different results. The last of these kinds
// also represents all remaining results.
var stepKinds = []struct {
	name string
	step store.Step
}{
	{"helo", store.Step{Kind: store.KindHelo, Arg: []byte("EHLO"), Result: smtp.ResultOK}},
	{"line", store.Step{Kind: store.KindCommand, Code: 500, Reply: []byte("5.5.1 Invalid command: Command unrecognized")}},
	{"auth", store.Step{Kind: store.KindAuth, Result: smtp.ResultPass}},
	{"guess", store.Step{Kind: store.KindAuth, Result: smtp.ResultFail}},
	{"mail-from", store.Step{Kind: store.KindMail, Result: smtp.ResultOK}},
	{"rcpt", store.Step{Kind: store.KindRcpt, Result: smtp.ResultOK}},
	{"refuse", store.Step{Kind: store.KindRcpt, Result: smtp.ResultPermfail, Code: 550}},
	{"listed", store.Step{Kind: store.KindListed}},
}

// StepKinds returns the kinds of steps. helo, mail-from and rcpt succeed, and line is
// an unknown command. auth is a successful login, and guess a failed one. refuse is a
// recipient that the server rejects.
// listed is the answer of a DNS list; see SetLists.
func StepKinds() (names []string) {
	for _, k := range stepKinds {
		names = append(names, k.name)
	}
	return names
}

// A Script describes a session with a server that accepts every known command. Only
// guess and refuse steps fail.
type Script struct {
	src, dst netip.AddrPort
	rdns     string
	fcrdns   smtp.FCrDNS
	steps    []Step
	answers  map[string]store.Step // answers of DNS lists, by the text of the step
}

// NewScript returns a Script, or an error if the description is invalid. The port in
// src is optional. If fcrdns is empty, a client with a reverse DNS name passes FCrDNS.
func NewScript(src, dst, rdns, fcrdns string, steps []Step) (*Script, error) {
	s := &Script{rdns: rdns, steps: steps}
	var err error
	if s.src, err = netip.ParseAddrPort(src); err != nil {
		a, err := netip.ParseAddr(src)
		if err != nil {
			return nil, fmt.Errorf("--src %q is not an address", src)
		}
		s.src = netip.AddrPortFrom(a, 40000)
	}
	if s.dst, err = netip.ParseAddrPort(dst); err != nil {
		return nil, fmt.Errorf("--dst %q is not ADDRESS:PORT", dst)
	}
	switch known := true; {
	case fcrdns == "" && rdns != "":
		s.fcrdns = smtp.FCrDNSPass
	case fcrdns == "":
		s.fcrdns = smtp.FCrDNSFail
	default:
		s.fcrdns = smtp.ParseFCrDNS([]byte(fcrdns))
		if known = slices.Contains([]string{"pass", "fail", "error"}, fcrdns); !known {
			return nil, fmt.Errorf("--fcrdns %q is not pass, fail or error", fcrdns)
		}
	}
	return s, checkOrder(steps)
}

// SetLists sets the policy's DNS lists. SetLists returns an error if a listed
// step's text is not LIST=CODE,CODE. The text LIST=none means that the client
// is not listed. If a listed step precedes all other steps, the answer is
// known when the client connects.
func (s *Script) SetLists(lists []*rules.Lookup) error {
	s.answers = map[string]store.Step{}
	for _, step := range s.steps {
		if step.Kind != "listed" {
			continue
		}
		name, codes, given := strings.Cut(step.Text, "=")
		i := slices.IndexFunc(lists, func(l *rules.Lookup) bool { return l.Name == name })
		if i < 0 {
			return fmt.Errorf("--listed %q: the policy has no lookup %s", step.Text, name)
		}
		if !given {
			return fmt.Errorf("--listed %q: write %s=CODE,... or, if the client is not listed, %s=none", step.Text, name, name)
		}
		if codes == "none" {
			codes = ""
		}
		var answer []netip.Addr
		for code := range strings.FieldsFuncSeq(codes, func(r rune) bool { return r == ',' }) {
			a, err := netip.ParseAddr(code)
			if err != nil {
				return fmt.Errorf("--listed %q: %q is not a code", step.Text, code)
			}
			answer = append(answer, a)
		}
		listed, known := lists[i].Judge(answer)
		if !known {
			return fmt.Errorf("--listed %q: lookup %s does not have all of these codes, so the answer would be unknown", step.Text, name)
		}
		a := store.Step{Kind: store.KindListed, Text: []byte(name), Match: []byte(lists[i].Zone), Result: smtp.ResultOK}
		if listed {
			a.Arg, a.Result = []byte(codes), smtp.ResultFail
		}
		if listed && lists[i].Allow {
			a.Result = smtp.ResultPass
		}
		s.answers[step.Text] = a
	}
	return nil
}

// checkOrder returns an error if a server would not allow the steps' order.
func checkOrder(steps []Step) error {
	greeted, sender := false, false
	for _, s := range steps {
		switch s.Kind {
		case "helo":
			greeted = true
		case "mail-from":
			if sender = true; !greeted {
				return fmt.Errorf("--mail-from needs --helo before it")
			}
		case "rcpt", "refuse":
			if !sender {
				return fmt.Errorf("--%s needs --mail-from before it", s.Kind)
			}
		}
	}
	return nil
}

const scriptID = 1

var scriptStart = time.Unix(1_000_000_000, 0).UTC()

// scriptPace is the time between two steps, which does not affect the
// evidence.
const scriptPace = 10 * time.Millisecond

// A scriptRecorder turns a script into a record.
type scriptRecorder struct {
	steps    []byte
	n        int
	msgid    uint32
	open     bool
	accepted int // accepted recipients in the open transaction
}

func (w *scriptRecorder) add(s store.Step) {
	w.n++
	w.steps = store.AppendStep(w.steps, &s, scriptPace)
}

// record returns the record that the session would have without a policy. A
// transaction with an accepted recipient ends with a message.
func (s *Script) record() (*store.Record, error) {
	w := &scriptRecorder{}
	greeted := false
	for _, step := range s.steps {
		if step.Kind == "listed" {
			w.add(s.answers[step.Text])
			continue
		}
		if !greeted {
			w.add(store.Step{Kind: store.KindGreeting})
		}
		greeted = true
		w.step(step.Kind, line(step.Text))
	}
	if !greeted {
		w.add(store.Step{Kind: store.KindGreeting})
	}
	w.finish()
	w.add(store.Step{Kind: store.KindQuit})
	end := scriptStart.Add(time.Duration(w.n+1) * scriptPace)
	r := &store.Record{ID: scriptID, Start: scriptStart, End: end, Src: netip.AddrPortFrom(s.src.Addr().Unmap().WithZone(""), s.src.Port()), Dst: s.dst,
		RDNS: line(s.rdns), FCrDNS: s.fcrdns, Ending: smtp.EndingQuit}
	back, err := store.Decode(store.AppendKey(nil, end, scriptID), store.AppendRecord(nil, r, w.steps))
	return &back, err
}

// line replaces bytes that are not allowed in a command.
func line(s string) []byte {
	return []byte(strings.NewReplacer("\n", "?", "\x00", "?").Replace(s))
}

// path returns a mail address without angle brackets.
func path(arg []byte) []byte {
	if n := len(arg); n > 1 && arg[0] == '<' && arg[n-1] == '>' {
		return arg[1 : n-1]
	}
	return arg
}

func (w *scriptRecorder) step(kind string, arg []byte) {
	for _, k := range stepKinds {
		if k.name != kind {
			continue
		}
		step := k.step
		step.Text = arg
		switch kind {
		case "mail-from":
			step.Text = path(arg)
			w.finish()
			w.msgid++
			w.open, w.accepted, step.MsgID = true, 0, w.msgid
		case "rcpt":
			step.Text = path(arg)
			w.accepted++
		case "refuse":
			step.Text = path(arg)
			step.Reply = fmt.Appendf(nil, "Invalid recipient: <%s>", arg)
		}
		w.add(step)
	}
}

// finish ends the open transaction.
func (w *scriptRecorder) finish() {
	switch {
	case w.open && w.accepted > 0:
		w.add(store.Step{Kind: store.KindData, Result: smtp.ResultOK})
		w.add(store.Step{Kind: store.KindCommit, Size: 100})
	case w.open:
		w.add(store.Step{Kind: store.KindRollback})
	}
	w.open = false
}

// flag returns the command-line flag for a step, or "".
func (s *Script) flag(step *store.Step) string {
	kind := ""
	for _, k := range stepKinds {
		if k.step.Kind == step.Kind {
			kind = k.name
			if k.step.Result == step.Result {
				break
			}
		}
	}
	if kind == "" {
		return ""
	}
	return "--" + kind + " " + text.Escape(step.Text)
}
