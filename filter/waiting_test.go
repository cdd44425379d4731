package filter_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"scanwatch/filter"
	"scanwatch/filter/dnslist"
	"scanwatch/filter/lookup"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
)

// TestWaitingSessions checks the answers if many sessions wait for a DNS list at the same time. The
// answers of the list arrive in another goroutine, so that the race detector checks the locks.
func TestWaitingSessions(t *testing.T) { synctest.Test(t, waitingSessions) }

func waitingSessions(t *testing.T) {
	tree, err := rules.Parse("test.conf", func(string) ([]byte, error) {
		return []byte("mode enforce\ncompanion lookup user _swlookup\nlookup bl dnsbl \"bl.example.org\" codes 127.0.0.2 hold 400ms\nrule bl phase helo match listed bl reject \"550 5.7.1 Listed\"\n"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	policy, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		t.Fatal(err)
	}
	table, wake := dnslist.New(), make(chan struct{}, 1)
	table.Wake = func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	records := 0
	p := filter.New(filter.Options{
		Record: func(time.Time, uint64, []byte) { records++ }, Log: func([]byte) {}, Lists: func() *lookup.Lists { return lists }, Lookups: table,
	})
	p.Use(&filter.Settings{Policy: policy})
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	table.Questions(ctx, 0) // the companion is running
	all.Go(func() {         // the last byte of the address selects the answer
		for ctx.Err() == nil {
			for _, q := range table.Questions(ctx, time.Second) {
				a := dnslist.Answer{Addr: q.Addr, List: policy.Lookups[0].ID(), TTL: time.Minute}
				switch q.Addr.As4()[3] % 3 {
				case 0:
					a.Codes = []netip.Addr{netip.MustParseAddr("127.0.0.2")}
				case 1:
					a.Cause = "timeout"
				}
				if err := table.Answer(a); err != nil {
					t.Error(err)
				}
			}
		}
	})
	const sessions = 250
	in, server := io.Pipe()
	answers, out := io.Pipe()
	got := map[string]string{}
	all.Go(func() {
		for s := bufio.NewScanner(answers); s.Scan(); {
			if f := strings.SplitN(s.Text(), "|", 4); f[0] == "filter-result" {
				if _, ok := got[f[1]]; ok {
					t.Errorf("two answers to session %s", f[1])
				}
				got[f[1]] = f[3]
				if len(got) == sessions {
					server.Close()
				}
			}
		}
	})
	all.Go(func() {
		fmt.Fprint(server, "config|smtpd-version|7.9.0\nconfig|ready\n")
		for i := range sessions {
			now := time.Now().UnixMicro()
			head := fmt.Sprintf("|0.7|%d.%06d|smtp-in|", now/1e6, now%1e6)
			fmt.Fprintf(server, "report%slink-connect|%016x|mail.example.net|pass|192.0.2.%d:4000|203.0.113.25:25\nfilter%sehlo|%016x|%016x|mail.example.net\n", head, i, i, head, i, i)
		}
	})
	front := smtpd.NewFrontEnd(p)
	err = smtpd.Serve(in, out, front, smtpd.Options{Reports: smtpd.Reports, Phases: []smtpd.ID{smtpd.PhaseEhlo}, Wake: wake, Log: func(s string) { t.Error(s) }})
	out.Close()
	front.Stop()
	p.Stop()
	cancel()
	all.Wait()
	if err != nil || len(got) != sessions || records != sessions {
		t.Errorf("%v, %d answers, %d records", err, len(got), records)
	}
	for i := range sessions {
		want := "proceed"
		if i%3 == 0 {
			want = fmt.Sprintf("reject|550 5.7.1 Listed [%016x]", i)
		}
		if answer := got[fmt.Sprintf("%016x", i)]; answer != want {
			t.Errorf("session %d: %s, want %s", i, answer, want)
		}
	}
}

// TestReloadWhileWaiting checks that a waiting request is answered immediately when a policy
// without DNS lists is loaded.
func TestReloadWhileWaiting(t *testing.T) { synctest.Test(t, reloadWhileWaiting) }

func reloadWhileWaiting(t *testing.T) {
	compile := func(text string) *rules.Policy {
		tree, err := rules.Parse("test.conf", func(string) ([]byte, error) { return []byte(text), nil })
		if err != nil {
			t.Fatal(err)
		}
		policy, _, err := rules.Compile(tree, rules.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return policy
	}
	const with = "mode enforce\ncompanion lookup user _swlookup\nlookup bl dnsbl \"bl.example.org\" codes 127.0.0.2 hold 400ms\nrule bl phase helo match listed bl reject \"550 5.7.1 Listed\"\n"
	for _, after := range []string{"mode enforce\n", strings.Replace(with, "enforce", "observe", 1), strings.Replace(with, "match", "match fcrdns fail", 1)} {
		table, wake := dnslist.New(), make(chan struct{}, 1)
		table.Wake = func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
		p := filter.New(filter.Options{Record: func(time.Time, uint64, []byte) {}, Log: func([]byte) {}, Lists: func() *lookup.Lists { return lists }, Lookups: table})
		policy := compile(with)
		p.Use(&filter.Settings{Policy: policy})
		table.Use(policy.Lookups)
		table.Questions(context.Background(), 0) // the companion is running
		in, server := io.Pipe()
		answers, out := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			front := smtpd.NewFrontEnd(p)
			if err := smtpd.Serve(in, out, front, smtpd.Options{Reports: smtpd.Reports, Phases: []smtpd.ID{smtpd.PhaseEhlo}, Wake: wake}); err != nil {
				t.Error(err)
			}
			out.Close()
		}()
		lines := make(chan string, 100)
		go func() {
			for s := bufio.NewScanner(answers); s.Scan(); {
				if strings.HasPrefix(s.Text(), "filter-result") {
					lines <- s.Text()
				}
			}
		}()
		now := time.Now()
		head := fmt.Sprintf("|0.7|%d.%06d|smtp-in|", now.Unix(), now.Nanosecond()/1000)
		fmt.Fprintf(server, "config|ready\nreport%slink-connect|0000000000000001|mail.example.net|pass|192.0.2.1:4000|203.0.113.25:25\nfilter%[1]sehlo|0000000000000001|0000000000000002|mail.example.net\n", head)
		synctest.Wait()
		select {
		case line := <-lines:
			t.Errorf("answer before the reload: %s", line)
		default:
		}
		policy = compile(after)
		p.Use(&filter.Settings{Policy: policy})
		table.Use(policy.Lookups)
		if line := <-lines; !strings.HasSuffix(line, "|proceed") || time.Since(now) >= time.Millisecond {
			t.Errorf("after %q: %s, after %v", after, line, time.Since(now))
		}
		server.Close()
		<-done
	}
}
