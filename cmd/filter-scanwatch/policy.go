package main

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/memory"
	"scanwatch/filter/session"
	"scanwatch/internal/contain"
	"scanwatch/rules"
	"scanwatch/store"
)

// watchFiles is how often the configuration, the files of its tables and its
// databases are looked at.
const watchFiles = 10 * time.Second

// policies keeps the policy of a table of sessions up to date. Whatever is
// wrong with the new one, the old one stays in use.
type policies struct {
	file   string // empty: there is no configuration
	dir    string // the state directory; at the start, the one that the operator names
	lists  func() *lookup.Lists
	use    func(*session.Settings)
	asked  []filter.ID // the phases that smtpd was told to ask in
	log    *slog.Logger
	find   func(string) string   // config.Find
	peers  iter.Seq[memory.Peer] // hosts that did good lately
	mu     sync.Mutex            // one reload at a time
	config *config.Config
	// refused are the files of lists and databases that were not taken for whom they
	// turn away.
	refused []string
	closed  *sandbox.Report // nil: there is no sandbox
	known   atomic.Bool     // peers can be asked
	unread  bool            // the disk of the configuration did not answer at the start

	stateMu sync.Mutex
	state   control.Config
}

// maxNotes is how many notes about tables status has; the log has them all.
const maxNotes = 10

// note keeps what status tells. A policy that is in use stays so when there is
// a problem with the next one.
func (p *policies) note(c *config.Config, problem string) {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	p.state.File, p.state.Problem = p.file, problem
	if c != nil {
		p.state.Mode, p.state.Rules = c.Policy.Mode.String(), len(c.Policy.Rules())
		p.state.Notes = slices.Clone(c.Notes[:min(len(c.Notes), maxNotes)])
	}
}

func (p *policies) status() control.Config {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	s := p.state
	if s.Mode == "" {
		s.Mode = rules.Observe.String()
	}
	return s
}

// enforced tells whether the policy in use acts.
func (p *policies) enforced() bool { return p.status().Mode == rules.Enforce.String() }

// start loads the configuration for the first time and returns its settings.
// A broken one must not end smtpd: the filter observes, and takes the next
// version that is right.
func (p *policies) start() rules.Settings {
	defaults := rules.Settings{Store: store.DefaultDir(), Budget: rules.DefaultBudget, Keep: rules.DefaultKeep}
	if p.file == "" {
		return defaults
	}
	type loaded struct {
		*config.Config
		err error
	}
	first, ok := inTime(p.log, "reading the configuration", configPatience, func() loaded {
		c, err := config.Load(p.file, p.lists(), nil, false)
		return loaded{c, err}
	})
	if ok && first.err == nil {
		dir := stateDir(p.dir, first.Config)
		refused, answered := inTime(p.log, "reading what was refused", diskPatience, func() []string { return readRefused(dir) })
		p.refused, p.unread = refused, !answered
		if len(refused) > 0 {
			first, ok = inTime(p.log, "reading the configuration", configPatience, func() loaded {
				c, err := config.LoadWithout(refused, p.file, p.lists())
				return loaded{c, err}
			})
		}
	}
	if !ok {
		// The watcher reads it as soon as it can be read. It may ask for anything then.
		p.config, p.asked, p.unread = config.Unread(p.file), session.AllPhases(), true
		p.log.Error("only observing, and recording where that is done by default: the disk of the configuration does not answer; restart smtpd when it does", "file", p.file)
		p.note(nil, "its disk did not answer at the start; restart smtpd")
		return defaults
	}
	c, err := first.Config, first.err
	if err != nil {
		p.complain(err)
		p.log.Error("only observing: mend the configuration and restart smtpd; see scanwatch check", "file", p.file)
		p.config = c
		p.note(nil, "it is broken: only observing until it is mended and smtpd restarted; see scanwatch check")
		return defaults
	}
	p.take(c)
	p.asked = session.Phases(c.Policy)
	set := c.Policy.Settings
	set.Store = stateDir(p.dir, c)
	return set
}

// stateDir is the state directory to use with c, unless the operator names one.
func stateDir(named string, c *config.Config) string {
	return cmp.Or(named, c.Policy.Store, store.DefaultDir())
}

func (p *policies) take(c *config.Config) {
	for _, w := range c.Warnings {
		p.log.Warn(w.Error())
	}
	for _, n := range c.Notes {
		p.log.Warn(n)
	}
	p.config = c
	p.note(c, "")
	p.use(&session.Settings{Policy: c.Policy, ASN: c.ASN, Country: c.Country})
}

func (p *policies) complain(err error) {
	for line := range strings.Lines(err.Error()) { // scanwatch check shows the places
		p.log.Error(strings.TrimSuffix(line, "\n"), contain.Stack(err))
	}
}

// reload loads the configuration again. Unless it is forced, one that newly turns
// away hosts for where they are, although they did good lately, is not taken: a
// broken feed, or a slip in a prefix, must not cost mail.
func (p *policies) reload(forced bool) error {
	if p.file == "" {
		return fmt.Errorf("the filter was started without a configuration; if there is one now, restart smtpd")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !forced && len(p.refused) > 0 && !p.known.Load() {
		return fmt.Errorf("%s: what was refused before the restart is not looked at until state.db has been read: try again, or use --force", p.file)
	}
	c, err := config.Load(p.file, p.lists(), p.config, false)
	outside := p.outside(c)
	if err != nil {
		p.config.Seen(c)
		p.complain(err)
		p.note(nil, "the new version is broken, the one before is in use; see scanwatch check")
		p.log.Error("the configuration was not taken, what was in use stays in use; see scanwatch check", "file", p.file)
		return fmt.Errorf("%s was not taken, the mail log says why; what was in use stays in use", p.file)
	}
	if reach := p.reach(c, p.config); len(reach) > 0 && !forced {
		if p.config.Policy != nil { // else nobody knows what is new
			p.refuse(c.News(p.config))
		}
		p.config.Seen(c)
		for _, r := range reach {
			p.log.Error(r)
		}
		p.note(nil, "not taken, as "+reach[0]+"; if that is meant: scanwatch reload --force")
		p.log.Error("the configuration was not taken, what was in use stays in use; if that is meant: scanwatch reload --force", "file", p.file)
		return fmt.Errorf("%s was not taken: %s; use --force if that is meant", p.file, strings.Join(reach, "; "))
	}
	p.take(c)
	p.refuse(nil)
	if outside {
		p.note(nil, "the sandbox does not let the filter read all files; restart smtpd")
	}
	for _, id := range session.Phases(c.Policy) {
		if !slices.Contains(p.asked, id) {
			p.log.Warn("rules now ask for a phase that smtpd does not ask in; restart smtpd", "phase", id.String())
			p.note(nil, "rules ask for phases that smtpd does not ask in; restart smtpd")
		}
	}
	p.log.Info("configuration loaded", "file", p.file, "mode", c.Policy.Mode.String(), "rules", len(c.Policy.Rules()))
	return nil
}

// outside tells of files that the configuration names only since the sandbox
// was closed, and returns whether there are any.
func (p *policies) outside(c *config.Config) bool {
	some := false
	for _, file := range c.Files() {
		if !p.closed.Covers(file) {
			p.log.Warn("the sandbox does not let the filter read a file that was not named when it started; restart smtpd", "file", file)
			some = true
		}
	}
	return some
}

// enoughMails is how many messages make a host one that a list must not hit
// unasked. With one message a spammer could keep every list away that has him.
const enoughMails = 10

// reach tells which rules of c turn away hosts that did good lately and that
// before, if it is not nil, lets in.
func (p *policies) reach(c, before *config.Config) (lines []string) {
	peers := func(yield func(memory.Peer) bool) {
		for peer := range p.peers {
			if (peer.Mails >= enoughMails || !peer.LastLogin.IsZero()) && !yield(peer) {
				return
			}
		}
	}
	for _, r := range c.Reach(peers, before) {
		if !r.Observed {
			lines = append(lines, r.String())
		}
	}
	return lines
}

// reached tells, once what was remembered is known, what the configuration of
// the start means for it.
func (p *policies) reached() {
	p.known.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.config == nil || p.config.Policy == nil {
		return
	}
	for _, line := range p.reach(p.config, nil) {
		p.log.Warn(line)
	}
}

// watch reloads when a file has changed, and when somebody asks with SIGHUP.
func (p *policies) watch(ctx context.Context, hangup <-chan os.Signal) {
	tick := time.NewTicker(watchFiles)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		case <-tick.C:
			p.appeared()
			if !p.changed() {
				continue
			}
		}
		if err := p.reload(false); p.file == "" {
			p.log.Warn(err.Error()) // any other error reload has logged itself
		}
	}
}

// appeared tells, once, that the default file has been made since the start.
// What smtpd asks is settled when it starts: only then can it be used.
func (p *policies) appeared() {
	if p.file != "" || p.status().Problem != "" {
		return
	}
	if file := p.find(""); file != "" {
		p.note(nil, file+" was made after the start; restart smtpd to use it")
		p.log.Warn("a configuration was made after the start; restart smtpd to use it", "file", file)
	}
}

func (p *policies) changed() bool {
	if p.file == "" {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return (len(p.refused) == 0 || p.known.Load()) && p.config.Changed()
}

// verb lets scanwatch(8) ask for a reload.
func (p *policies) verb() control.Verb {
	return control.Verb{Name: "reload", Args: 1, Run: func(_ context.Context, a *control.Answer, args []string) error {
		if err := p.reload(args[0] == control.Forced); err != nil {
			return err
		}
		return a.JSON(struct{}{})
	}}
}
