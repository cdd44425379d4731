package main

// The verbs about bans.

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/filter/memory"
	"scanwatch/store"
	store_report "scanwatch/store/report"
)

const banHelp = `PREFIX is an address or a network. A host is banned as a whole: an IPv6 address
with its /64. The ban takes effect at once, and ends by itself.

  --for DURATION  how long (30m, 12h, 7d, 2w); 1d by default
  --reason TEXT   what the client is told, and what stands in the list
  --force         also if mail was accepted or somebody logged in from there,
                  and a network larger than a /8 (IPv6: a /16)`

const unbanHelp = `Ends every ban within PREFIX, of hosts and of networks, at once.`

const bansHelp = `Lists the bans that hold, those that end last first; with PREFIX those within
it.

  --all   also those that are over, as long as they are remembered (90 days)
  --json  one JSON object a line`

// recentDays is how far back a ban looks for good mail.
const recentDays = 90

// prefix parses an address or a network.
func prefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return memory.Source(a.Unmap().WithZone("")), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, usage("%q is neither an address nor a network, such as 192.0.2.1 or 2001:db8::/48", s)
	}
	if p != p.Masked() {
		return p, usage("%s is no network; did you mean %s?", p, p.Masked())
	}
	if p.Addr().Is6() && p.Bits() > 64 {
		p, _ = p.Addr().Prefix(64)
	}
	return p, nil
}

func banVerb(e *env, args []string) error {
	length := e.flags.String("for", "1d", "")
	reason := e.flags.String("reason", "by the postmaster", "")
	force := e.flags.Bool("force", false, "")
	args, err := e.parse(args, 1, 1)
	if err != nil {
		return err
	}
	p, err := prefix(args[0])
	if err != nil {
		return err
	}
	d, err := span(*length)
	if err != nil || d < time.Minute || d > 366*24*time.Hour {
		return usage("--for %q: must be a time span from 1m to 366d", *length)
	}
	largest := 8
	if p.Addr().Is6() {
		largest = 16
	}
	if p.Bits() < largest && !*force {
		return fmt.Errorf("%s was not banned: it is larger than a /%d; use --force if that is meant", p, largest)
	}
	client, err := control.Dial(e.dir)
	if err != nil {
		return err
	}
	defer client.Close()
	if !*force {
		if why, err := e.goodFrom(p); err != nil {
			return fmt.Errorf("look for good mail from %s (--force skips this): %w", p, err)
		} else if why != "" {
			return fmt.Errorf("%s was not banned: %s; use --force if that is meant", p, why)
		}
	}
	b, err := client.Ban(p, d, *reason)
	if err != nil {
		return err
	}
	for _, one := range b.Bans {
		fmt.Fprintf(e.out, "%s is banned until %s\n", one.Prefix, one.Until.In(e.zone).Format("2006-01-02 15:04 -0700"))
	}
	e.note(b.Note)
	return nil
}

// note prints what the filter has to say about what was done.
func (e *env) note(s string) {
	if s != "" {
		_ = e.out.Flush() // what was done comes first
		fmt.Fprintf(e.err, "scanwatch: %s\n", s)
	}
}

// goodFrom tells what good came from p lately, "" if nothing did.
func (e *env) goodFrom(p netip.Prefix) (string, error) {
	r, client, problems, err := e.reader()
	if err != nil {
		return "", err
	}
	if client != nil {
		defer client.Close()
	}
	e.warn(r, problems)
	mails, logins := 0, 0
	domains, users := map[string]bool{}, map[string]bool{}
	err = each(r, e.now().AddDate(0, 0, -recentDays), func(rec *store.Record) error {
		if !rec.Src.IsValid() || !p.Contains(rec.Src.Addr()) || rec.Counts.Mails == 0 && rec.Counts.AuthPass == 0 {
			return nil
		}
		mails += int(rec.Counts.Mails)
		logins += int(rec.Counts.AuthPass)
		return rec.Steps(func(s *store.Step) bool {
			switch {
			case s.Kind == store.KindMail && s.Result == store.ResultOK && len(domains) < 10_000:
				_, domain, _ := strings.Cut(string(s.Text), "@")
				domains[strings.ToLower(domain)] = true
			case s.Kind == store.KindAuth && s.Result == store.ResultPass && len(users) < 10_000:
				users[string(s.Text)] = true
			}
			return true
		})
	})
	if err != nil || mails == 0 && logins == 0 {
		return "", err
	}
	var parts []string
	if mails > 0 {
		parts = append(parts, fmt.Sprintf("it delivered %d messages from %d domains in %d days", mails, len(domains), recentDays))
	}
	if logins > 0 {
		parts = append(parts, fmt.Sprintf("%d users logged in from it", len(users)))
	}
	return strings.Join(parts, ", and "), nil
}

func unban(e *env, args []string) error {
	args, err := e.parse(args, 1, 1)
	if err != nil {
		return err
	}
	p, err := prefix(args[0])
	if err != nil {
		return err
	}
	client, err := control.Dial(e.dir)
	if err != nil {
		return err
	}
	defer client.Close()
	b, err := client.Unban(p)
	if err != nil {
		return err
	}
	for _, one := range b.Bans {
		fmt.Fprintf(e.out, "the ban of %s has ended (%s)\n", one.Prefix, store_report.Printable([]byte(one.Rule)))
	}
	e.note(b.Note)
	if len(b.Bans) == 0 {
		return fmt.Errorf("nothing within %s was banned", p)
	}
	return nil
}

func bans(e *env, args []string) error {
	all := e.flags.Bool("all", false, "")
	asJSON := e.flags.Bool("json", false, "")
	args, err := e.parse(args, 0, 1)
	if err != nil {
		return err
	}
	var within netip.Prefix
	if len(args) == 1 {
		if within, err = prefix(args[0]); err != nil {
			return err
		}
	}
	var list []memory.Ban
	err = e.state([]string{"bans"}, func(en store.Entry) error {
		b, ok := memory.ReadBan(en.Key, en.Value)
		switch {
		case !ok, !*all && b.Over(e.now()):
		case within.IsValid() && !within.Overlaps(b.Prefix):
		default:
			list = append(list, b)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b memory.Ban) int {
		return cmp.Or(b.Until.Compare(a.Until), a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	if *asJSON {
		out := json.NewEncoder(e.out)
		for i := range list {
			if err := out.Encode(jsonBan{list[i], hexID(list[i].Session), list[i].Over(e.now())}); err != nil {
				return err
			}
		}
		return nil
	}
	if len(list) == 0 {
		who := "nobody"
		if within.IsValid() {
			who += " in " + within.String()
		}
		fmt.Fprintln(e.out, who, "is banned")
		return nil
	}
	fmt.Fprintf(e.out, "%-22s %-16s %5s %5s  %s\n", "PREFIX", "UNTIL", "TIMES", "TRIES", "RULE AND SESSION")
	for i := range list {
		b := &list[i]
		why := store_report.Printable([]byte(b.Rule))
		if b.Session != 0 {
			why += " " + hexID(b.Session)
		}
		switch {
		case b.Lifted:
			why += " (lifted)"
		case b.Over(e.now()):
			why += " (over)"
		case b.Observe:
			why += " (observed only)"
		case b.Manual:
			why += " (by hand)"
		}
		fmt.Fprintf(e.out, "%-22s %-16s %5d %5d  %s\n", b.Prefix, b.Until.In(e.zone).Format("2006-01-02 15:04"), b.Times, b.Tries, why)
	}
	return nil
}

type jsonBan struct {
	memory.Ban
	Session string `json:"session,omitempty"`
	Over    bool   `json:"over"`
}

func hexID(id uint64) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", id)
}

// state goes through what is remembered across sessions. Not to have any is no
// error.
func (e *env) state(buckets []string, visit func(store.Entry) error) error {
	if _, err := os.ReadDir(e.dir); err != nil {
		return dirError(err)
	}
	live := func(w io.Writer) error {
		client, err := control.Dial(e.dir)
		if err != nil {
			return err
		}
		defer client.Close()
		return client.State(w)
	}
	err := store.ReadState(e.dir, buckets, live, visit)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
