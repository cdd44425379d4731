package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/internal/safego"
	"scanwatch/internal/smtp"
	"scanwatch/internal/text"
	"scanwatch/rules"
	"scanwatch/store"
)

// watchFiles is the interval at which the filter checks the configuration, tables and
// databases for changes.
const watchFiles = 10 * time.Second

// policies keeps the pipeline's policy up to date. If a new configuration has errors, the
// previous policy remains active.
type policies struct {
	file   string // empty without a configuration
	dir    string // state directory; initially the flag's value
	lists  func() *lookup.Lists
	use    func(*rules.Policy, *config.Config)
	server string        // program that the operator restarts; "" means smtpd
	asked  smtp.PhaseSet // phases that the front end has registered
	all    bool          // the front end sends requests in all phases
	log    *slog.Logger
	find   func(string) string // config.Find
	mu     sync.Mutex          // held during a reload
	config *config.Config
	closed *sandbox.Report // nil without a sandbox
	// companions and fleet hold the text of the companion and fleet statements, which take effect
	// only at startup.
	companions, fleet string
	zones             string // text of the zone statements in the latest configuration
	unread            bool   // reading the configuration timed out at startup

	stateMu sync.Mutex
	state   control.Config
	active  *config.Config // nil until a configuration is valid
	halt    control.Halt
}

// maxNotes is the maximum number of notes about tables in the status. All notes are
// logged.
const maxNotes = 10

// note updates the configuration's description in the status. problem may refer to a new
// configuration that was rejected.
func (p *policies) note(c *config.Config, problem string) {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	p.state.File, p.state.Problem = p.file, control.Restart(problem, p.server)
	if c != nil {
		p.state.Mode, p.state.Rules = c.Policy.Mode.String(), len(c.Policy.Rules())
		p.state.Notes = slices.Clone(c.Notes[:min(len(c.Notes), maxNotes)])
		p.state.Kept, p.state.Digest = c.Kept, c.Digest()
	}
}

func (p *policies) status() control.Config {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	s := p.state
	if s.Mode == "" {
		s.Mode = rules.Observe.String()
	}
	if p.halt.Active(time.Now()) {
		s.Halted, s.Mode = &control.Halted{Mode: s.Mode, Until: text.At(p.halt.Until)}, rules.Observe.String()
	}
	return s
}

// policy returns the active policy, or nil if there is none.
func (p *policies) policy() *rules.Policy {
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	if p.active == nil {
		return nil
	}
	return p.active.Policy
}

// enforced reports whether the policy is enforced.
func (p *policies) enforced() bool { return p.status().Mode == rules.Enforce.String() }

// start loads the configuration and returns its settings. An invalid configuration must
// not stop smtpd, so until a valid one is loaded, the filter only observes.
func (p *policies) start() rules.Settings {
	if p.all {
		p.asked = smtp.Answerable
	}
	defaults := new(rules.Config).Settings()
	defaults.Store = store.DefaultDir()
	if p.file == "" {
		return defaults
	}
	type loaded struct {
		*config.Config
		err   error
		store rules.Settings // used if err is set
	}
	first, ok := withTimeout(p.log, "reading the configuration", configTimeout, func() loaded {
		c, err := config.Load(p.file, p.lists(), nil, false)
		l := loaded{Config: c, err: err}
		if err != nil {
			_ = safego.Run(func() error { l.store = rules.ParseStore(p.file, os.ReadFile); return nil })
		}
		return l
	})
	if !ok {
		// watch loads the configuration once the disk answers. Register all phases, because the
		// rules have not been read yet.
		p.config, p.asked, p.unread = config.Unread(p.file), smtp.Answerable, true
		p.log.Error("configuration unreadable: disk timeout; observing only, recording in the default directory; restart smtpd when the disk answers", "file", p.file)
		p.note(nil, "disk timeout at startup; restart smtpd")
		return defaults
	}
	c, err := first.Config, first.err
	if err != nil {
		p.complain(err)
		p.log.Error("configuration invalid, observing only; fix it and restart smtpd, see scanwatch check", "file", p.file)
		p.config = c
		p.note(nil, "invalid, observing only; fix it and restart smtpd, see scanwatch check")
		set := first.store
		defaults.Store, defaults.Keep, defaults.Budget = cmp.Or(config.ResolvePath(p.file, set.Store), defaults.Store), cmp.Or(set.Keep, defaults.Keep), cmp.Or(set.Budget, defaults.Budget)
		return defaults
	}
	p.take(c)
	p.companions, p.fleet, p.zones = companionText(c.Policy), fleetText(c.Policy), zoneText(c.Policy)
	if !p.all {
		p.asked = filter.Phases(c.Policy)
	}
	set := c.Policy.Settings
	set.Store = cmp.Or(p.dir, c.Policy.Store, store.DefaultDir())
	return set
}

// companionText returns the text of p's companion statements.
func companionText(p *rules.Policy) string {
	text := p.RunDir
	for _, c := range p.Companions {
		text += "\n" + c.String()
	}
	return text
}

// fleetText returns the text of p's fleet statement, or "".
func fleetText(p *rules.Policy) string {
	if p.Fleet == nil {
		return ""
	}
	return p.Fleet.String()
}

// zoneText returns the text of p's zone statements.
func zoneText(p *rules.Policy) (text string) {
	for _, z := range p.Zones {
		text += z.String() + "\n"
	}
	return text
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
	p.stateMu.Lock()
	defer p.stateMu.Unlock()
	p.active = c
	p.apply()
}

func (p *policies) complain(err error) {
	var places rules.Errors
	if errors.As(err, &places) {
		for _, e := range places {
			var more []any
			if e.Hint != "" {
				more = []any{"hint", e.Hint}
			}
			p.log.Error(e.Error(), more...)
		}
		return
	}
	for line := range strings.Lines(err.Error()) { // scanwatch check also quotes the source lines
		p.log.Error(strings.TrimSuffix(line, "\n"), safego.Stack(err))
	}
}

// reload reloads the configuration. Unless forced is set, a table keeps its entries if
// its file has become empty.
func (p *policies) reload(forced bool) error {
	if p.file == "" {
		return errors.New(control.Restart("the filter was started without a configuration; if there is one now, restart smtpd", p.server))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c, err := config.Reload(p.config, p.lists(), forced)
	outside := p.outside(c)
	if err != nil {
		p.config.MarkSeen(c)
		p.complain(err)
		p.note(nil, "the new version is invalid, the previous one is in use; see scanwatch check")
		p.log.Error("configuration invalid, keeping the previous one; see scanwatch check", "file", p.file)
		return fmt.Errorf("load %s: invalid, the previous configuration is still in use; see scanwatch check", p.file)
	}
	if text := zoneText(c.Policy); p.zones != text {
		p.zones = text
		c.Notes = append(c.Notes, "zones changed; restart the service of companion serve")
	}
	p.take(c)
	if outside {
		p.note(nil, "files outside the sandbox; restart smtpd")
	}
	for _, phase := range (filter.Phases(c.Policy) &^ p.asked).List() {
		p.log.Warn("rules use a phase that is not registered; restart smtpd", "phase", phase.String())
		p.note(nil, "rules use phases that are not registered; restart smtpd")
	}
	if p.companions != companionText(c.Policy) {
		p.log.Warn("companions changed; restart smtpd")
		p.note(nil, "companions changed; restart smtpd")
	}
	if p.fleet != fleetText(c.Policy) { // checked last, because the remedy also restarts the other companions
		p.log.Warn("fleet changed; restart smtpd, then the service of companion share")
		p.note(nil, "fleet changed; restart smtpd, then the service of companion share")
	}
	p.log.Info("configuration loaded", "file", p.file, "mode", c.Policy.Mode.String(), "rules", len(c.Policy.Rules()))
	return nil
}

// outside logs the configured files that the sandbox makes inaccessible, and reports
// whether there are any.
func (p *policies) outside(c *config.Config) bool {
	some := false
	for _, file := range c.Files() {
		if !p.closed.Covers(file) {
			p.log.Warn("file outside the sandbox; restart smtpd", "file", file)
			some = true
		}
	}
	return some
}

// watch reloads the configuration on SIGHUP and whenever a file changes.
func (p *policies) watch(ctx context.Context, hangup <-chan os.Signal) {
	tick := time.NewTicker(watchFiles)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		case <-tick.C:
			p.endHalt(time.Now())
			p.appeared()
			if !p.changed() {
				continue
			}
		}
		if err := p.reload(false); p.file == "" {
			p.log.Warn(err.Error()) // reload has logged all other errors
		}
	}
}

// appeared logs once that the default configuration file now exists. The filter cannot
// load the file, because phases are registered only at startup.
func (p *policies) appeared() {
	if p.file != "" || p.status().Problem != "" {
		return
	}
	if file := p.find(""); file != "" {
		p.note(nil, file+" was created after startup; restart smtpd to use it")
		p.log.Warn("configuration created after startup; restart smtpd to use it", "file", file)
	}
}

func (p *policies) changed() bool {
	if p.file == "" {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config.Changed()
}

// verb returns the control command that reloads the configuration.
func (p *policies) verb() control.Command {
	return control.Command{Name: "reload", Args: 1, Run: func(_ context.Context, a *control.Answer, args []string) error {
		if err := p.reload(args[0] == control.Forced); err != nil {
			return err
		}
		return a.JSON(p.status())
	}}
}
