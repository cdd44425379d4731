package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/spf13/cobra"

	"scanwatch/cmd/internal/control"
	"scanwatch/cmd/internal/facts"
	"scanwatch/cmd/internal/fleetkey"
	"scanwatch/cmd/internal/output"
	"scanwatch/cmd/internal/owner"
	"scanwatch/cmd/internal/sharing"
	"scanwatch/filter/share"
	"scanwatch/internal/kv"
	"scanwatch/internal/text"
	"scanwatch/rules"
)

type factsFlags struct {
	output, host, key string
	bans              bool
}

func newFacts(e *env) *cobra.Command {
	var f factsFlags
	c := &cobra.Command{
		Use:   "facts",
		Short: "Exchange shared state with other hosts in files.",
		Long: "Write the state that this host shares to a file, or read the files of other\n" +
			"hosts. A job that copies the files replaces the server that scanwatch share\n" +
			"needs.",
		Example: "  scanwatch facts export -o mx1.facts\n  scanwatch facts import mx2.facts mx3.facts",
	}
	export := &cobra.Command{
		Use:   "export [-o FILE] [--bans] [--host NAME] [--key FILE]",
		Short: "Write the bans, counts and standing of this host.",
		Long: "Write the bans, counts and standing of this host as lines of JSON with an\n" +
			"authentication code. Names and mailboxes are hashed with the fleet's key. Other\n" +
			"operators must not have this key: for them, write only bans, with a separate\n" +
			"key.",
		Example: "  scanwatch facts export -o /var/spool/scanwatch/mx1.facts\n  scanwatch facts export --bans --key friends.key -o bans.facts",
		Args:    argsBetween(0, 0),
		RunE:    func(*cobra.Command, []string) error { return runFactsExport(e, &f) },
	}
	export.Flags().StringVarP(&f.output, "output", "o", "", "replace `FILE` in one step; - is standard output")
	export.Flags().BoolVar(&f.bans, "bans", false, "write only bans")
	read := &cobra.Command{
		Use:   "import [--host NAME] [--key FILE] FILE ...",
		Short: "Read the files of other hosts.",
		Long: "Pass the rows in the files of other hosts to the running filter. The files must\n" +
			"have been written by scanwatch facts export with the same key. Rows whose names\n" +
			"are hashed with a different key are omitted. Rows of hosts whose files are not\n" +
			"given remain.",
		Example: "  scanwatch facts import /var/spool/scanwatch/mx2.facts\n  scanwatch facts import --key friends.key bans.facts",
		Args:    argsBetween(1, maxFactFiles),
		RunE:    func(_ *cobra.Command, args []string) error { return runFactsImport(e, &f, args) },
	}
	for _, one := range []*cobra.Command{export, read} {
		one.Flags().StringVar(&f.host, "host", "", "`NAME` of this host; the default is that of the statement fleet")
		one.Flags().StringVar(&f.key, "key", "", "`FILE` with the key; the default is that of the statement fleet")
	}
	c.AddCommand(export, read)
	return c
}

const maxFactFiles = 1000

// factsFleet returns the configured fleet, with changes by the flags, and the key. friends reports
// whether this key differs from the fleet's key.
func factsFleet(e *env, f *factsFlags) (fleet rules.Fleet, key fleetkey.Key, friends bool, err error) {
	dir, err := e.stateDir()
	if err != nil {
		return fleet, key, false, err
	}
	if s := dir.Settings.Fleet; s != nil {
		fleet = *s
	}
	ownKey := fleet.Key
	if f.host != "" {
		fleet.Name = f.host
	}
	if f.key != "" {
		fleet.Key = f.key
	}
	switch {
	case fleet.Name == "" || fleet.Key == "":
		return fleet, key, false, usage("facts: the configuration has no statement fleet; use --host and --key")
	case !share.ValidName(fleet.Name):
		return fleet, key, false, usage("facts: %q is not a host name", fleet.Name)
	}
	if key, err = fleetkey.Read(fleet.Key); err != nil || ownKey == "" || ownKey == fleet.Key {
		return fleet, key, false, err
	}
	own, err := fleetkey.Read(ownKey)
	return fleet, key, err != nil || own != key, nil
}

// sharedRows returns this host's rows that other hosts may receive. names reports whether the names
// in these rows are hashed with the given key.
func sharedRows(e *env, key fleetkey.Key) (rows iter.Seq[kv.Entry], names bool, err error) {
	dir, err := e.stateDir()
	if err != nil {
		return nil, false, err
	}
	m, err := dir.Memory()
	if err != nil {
		return nil, false, err
	}
	m.Announce()
	return func(yield func(kv.Entry) bool) {
		const some = 1000
		for {
			list := m.Outgoing(some, 0)
			for _, row := range list {
				if !yield(row) {
					return
				}
			}
			if len(list) < some {
				return
			}
		}
	}, m.Key() == key.State(), nil
}

func runFactsExport(e *env, f *factsFlags) error {
	fleet, key, _, err := factsFleet(e, f)
	if err != nil {
		return err
	}
	rows, names, err := sharedRows(e, key)
	if err != nil {
		return err
	}
	if !names && !f.bans {
		problem := "facts: the filter does not use this key for its hashes; add the statement fleet and restart smtpd, or use --bans"
		if dir, err := e.stateDir(); err == nil {
			problem = control.Restart(problem, control.LatestFrontEnd(dir.Path).Server())
		}
		return errors.New(problem)
	}
	x := facts.Exporter{Host: fleet.Name, Key: key, Names: names && !f.bans}
	n := 0
	write := func(w io.Writer) (err error) {
		n, err = x.Write(w, rows, e.now())
		return err
	}
	const private = 0o600 // bans must not be readable by other users of this host
	err = output.To(e.out, f.output, private, write)
	if err != nil || output.IsStdout(f.output) {
		return err
	}
	_, err = fmt.Fprintf(e.out, "%s written to %s\n", text.Plural(n, "row"), f.output)
	return err
}

func runFactsImport(e *env, f *factsFlags, names []string) error {
	fleet, key, friends, err := factsFleet(e, f)
	if err != nil {
		return err
	}
	_, same, err := sharedRows(e, key)
	if err != nil {
		return err
	}
	fingerprint := ""
	if same {
		fingerprint = key.Fingerprint()
	}
	var files []*facts.File
	for _, name := range names {
		one, err := readFacts(name, key, fingerprint)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		ignored := slices.Contains(fleet.Ignore, one.Host)
		if friends {
			if err := one.Befriend(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		switch {
		case ignored, slices.Contains(fleet.Ignore, one.Host):
			e.note(fmt.Sprintf("%s omitted: the statement fleet ignores %s", name, one.Host))
			continue
		case one.Host == fleet.Name:
			e.note(fmt.Sprintf("%s omitted: %s is this host", name, one.Host))
			continue
		case one.Omitted > 0:
			e.note(fmt.Sprintf("%s: %s with names that are hashed with a different key omitted", name, text.Plural(one.Omitted, "row")))
		}
		if clock := one.Clock(e.now()); clock != "" {
			e.warn(name + ": " + clock)
		}
		files = append(files, one)
	}
	rows, hosts, err := facts.Merge(fleet.Name, sharing.Limits(&fleet), files, e.now())
	if err != nil {
		return err
	}
	err = e.ask(func(c *control.Client) error {
		if err := control.DisownAll(c, fleet.Ignore); err != nil {
			return err
		}
		if err := control.SendPartial(c, rows); err != nil {
			return err
		}
		return control.SendImported(c, hosts)
	})
	if err != nil {
		return err
	}
	for _, h := range hosts {
		const layout = "2006-01-02 15:04:05 -0700"
		latest := ""
		if h.Rows > 0 {
			latest = ", latest change " + h.Last.In(e.zone).Format(layout)
		}
		fmt.Fprintf(e.out, "%s: %s%s, written %s\n", h.Name, text.Plural(h.Rows, "row"), latest, h.Heard.In(e.zone).Format(layout))
		if h.Problem != "" {
			e.warn(fmt.Sprintf("%s: %s omitted: %s", h.Name, text.Plural(h.Omitted, "row"), h.Problem))
		}
	}
	return nil
}

func readFacts(name string, key fleetkey.Key, own string) (*facts.File, error) {
	file, err := owner.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Size() > facts.MaxSize {
		return nil, cmp.Or(err, fmt.Errorf("larger than %s", text.ShortSize(facts.MaxSize)))
	}
	return facts.Read(file, key, own)
}
