//go:build linux && others

package hostile

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"scanwatch/tests/internal/smtpd"
)

// TestHostileClientsOfOthers prints the table in the README with the results of attacks on other
// filters. If a filter does not survive a round, the attacks of that round are repeated one at a
// time. The test does not check scanwatch.
func TestHostileClientsOfOthers(t *testing.T) {
	for _, v := range smtpd.Matrix() {
		for _, other := range others {
			t.Run(v.Name+"/"+other.name, func(t *testing.T) {
				smtpd.Require(t, v)
				f, err := other.make(t, t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				o := smtpd.Options{Version: v, Filters: []smtpd.Filter{f}, Hosts: append(smtpd.Hosts(), smtpd.Host{Addr: friend, Name: friendName, Confirmed: true})}
				list := possible(v)
				fate := make([]string, len(list))
				for first := 0; first < len(list); first += atOnce {
					last := min(first+atOnce, len(list))
					switch what := suffers(o, list[first:last], first, deliver); {
					case what == "":
						continue
					case strings.HasPrefix(what, notStarted):
						fmt.Printf("%s  %s  %s\n", v.Name, other.name, what)
						return
					}
					for i := first; i < last; i++ {
						fate[i] = suffers(o, list[i:i+1], i, deliver)
					}
				}
				list, fate = append(list, attack{name: "local mail"}), append(fate, local(o))
				tell := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
				for i, a := range list {
					if fate[i] != "" {
						fmt.Fprintf(tell, "%s\t%s\t%s\t%s\n", v.Name, other.name, a.name, fate[i])
					}
				}
				n := len(list) - len(slices.DeleteFunc(fate, func(s string) bool { return s != "" }))
				fmt.Fprintf(tell, "%s\t%s\t%d attacks, %d of them end or hang the server\n", v.Name, other.name, len(list), n)
				tell.Flush()
			})
		}
	}
}

// local describes the damage to a server whose filter receives local mail.
func local(o smtpd.Options) string {
	o.Socket = true
	s, err := smtpd.Start(o)
	if err != nil {
		return notStarted + lastWords(err.Error())
	}
	defer func() { _ = s.Stop() }()
	if err := errors.Join(s.Sendmail(strings.NewReader("Subject: x\n\nx\n"), "alice@example.org"), deliver(s)); err != nil || !s.Alive() {
		return "smtpd exits: " + lastWords(s.Log())
	}
	return ""
}
