package main

// The verbs that ask the running filter.

import (
	"encoding/json"
	"fmt"
	"time"

	"scanwatch/cmd/internal/control"
	store_report "scanwatch/store/report"
)

func status(e *env, args []string) error {
	asJSON := e.flags.Bool("json", false, "")
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	client, err := control.Dial(e.dir)
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := client.Status()
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(e.out).Encode(s)
	}
	st := &s.Store
	line := func(name, format string, args ...any) {
		fmt.Fprintf(e.out, "%-10s%s\n", name, fmt.Sprintf(format, args...))
	}
	for _, problem := range statusProblems(&s, e.zone) {
		fmt.Fprintln(e.out, fold("PROBLEM   "+problem, 79, 10))
	}
	line("filter", "version %s, pid %d, since %s", s.Program, s.PID, s.Started.In(e.zone).Format("2006-01-02 15:04:05 -0700"))
	if s.Config.File != "" {
		line("policy", "%s, mode %s, %d rules", s.Config.File, s.Config.Mode, s.Config.Rules)
	} else {
		line("policy", "none: mode observe")
	}
	if s.Log != "" {
		line("log", "%s", s.Log)
	}
	if s.Sandbox != "" {
		line("sandbox", "%s", s.Sandbox)
	}
	line("sessions", "%d recorded since then, %d of them on disk", st.Added, st.Committed)
	line("open", "%d sessions, %d answers held", s.Live.Sessions, s.Live.Held)
	line("memory", "%d of %d bytes wait to be written", st.Buffered, st.Buffer)
	line("disk", "%d of %d bytes, %s in %s", st.Bytes, st.Budget, plural(st.Segments, "segment"), st.Dir)
	if st.Segment != "" {
		line("writing", "%s", st.Segment)
	}
	if ev := s.Events; ev != nil {
		line("events", "%d sent to %s, %d left out", ev.Sent, ev.Path, ev.LeftOut.Rate+ev.LeftOut.Full+ev.LeftOut.Gone)
	}
	for _, m := range s.Memory {
		if m.Rows > 0 {
			text := fmt.Sprintf("%d of %d %s", m.Rows, m.Most, m.Table)
			if m.Forgot > 0 {
				text += fmt.Sprintf(", %d forgotten because there was no room", m.Forgot)
			}
			line("remembers", "%s", text)
		}
	}
	return nil
}

// statusProblems are what somebody should look at, printable.
func statusProblems(s *control.Status, zone *time.Location) (all []string) {
	add := func(format string, args ...any) {
		all = append(all, store_report.Printable(fmt.Appendf(nil, format, args...)))
	}
	st := &s.Store
	if st.Error != "" {
		add("since %s: %s", st.Since.In(zone).Format(time.DateTime), st.Error)
	}
	if n := st.Dropped.Total(); n > 0 {
		add("%d sessions were dropped: %s", n, st.Dropped)
	}
	if st.Damaged > 0 {
		add("%d damaged segments were set aside", st.Damaged)
	}
	if s.State.Error != "" {
		add("since %s: %s", s.State.Since.In(zone).Format(time.DateTime), s.State.Error)
	}
	if ev := s.Events; ev != nil && ev.Error != "" {
		add("since %s: events: %s", ev.Since.In(zone).Format(time.DateTime), ev.Error)
	}
	if s.Config.Problem != "" {
		add("configuration: %s", s.Config.Problem)
	}
	for _, n := range s.Config.Notes {
		add("configuration: %s", n)
	}
	return all
}

func flush(e *env, args []string) error { return e.tell(args, (*control.Client).Flush) }

const reloadHelp = `A configuration that newly turns away hosts for their address, network or
country, although ten messages or more came from them or somebody logged in from
there lately, is not taken. The filter looks at its files every ten seconds in
the same way.

  --force  take it`

func reload(e *env, args []string) error {
	force := e.flags.Bool("force", false, "")
	return e.tell(args, func(c *control.Client) error { return c.Reload(*force) })
}

// tell makes the running filter do something that has no arguments.
func (e *env) tell(args []string, do func(*control.Client) error) error {
	if _, err := e.parse(args, 0, 0); err != nil {
		return err
	}
	client, err := control.Dial(e.dir)
	if err != nil {
		return err
	}
	defer client.Close()
	return do(client)
}
