package firewall

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"scanwatch/rules"
)

// inNamespace moves the test into a new network namespace.
func inNamespace(t testing.TB, programs ...string) {
	t.Helper()
	missing := func(what string) {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatal(what)
		}
		t.Skip("SKIP, NOT TESTED: " + what)
	}
	if os.Geteuid() != 0 {
		missing("network namespaces need root")
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(p + " is not installed")
		}
	}
	runtime.LockOSThread() // the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		missing("make a network namespace: " + err.Error())
	}
}

// inThread calls f in a goroutine whose thread is in the test's namespace.
func inThread(t testing.TB, f func()) {
	t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer ns.Close()
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		f()
	}()
}

// shell runs a script in the test's namespace.
func shell(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-euc", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

const nftSets = `
	set scanwatch4 { type ipv4_addr; flags timeout; }
	set scanwatch4net { type ipv4_addr; flags interval, timeout; }
	set scanwatch6 { type ipv6_addr; flags timeout; }
	set scanwatch6net { type ipv6_addr; flags interval, timeout; }
`

// firewalls contains the real firewalls. Their scripts create empty sets, and add or remove entries
// as another program would.
var firewalls = []struct {
	word, argument, program   string
	create, foreign, removing string
	missing                   string // expected in the error if the sets are missing
}{
	{"nftables", "inet filter scanwatch", "nft",
		"nft -f - <<'END'\nflush ruleset\ntable inet filter {" + nftSets + "}\nEND",
		"nft add element inet filter scanwatch4 '{ 45.9.9.9 }'; nft add element inet filter scanwatch4net '{ 45.9.8.0-45.9.8.9 }'",
		"nft flush set inet filter scanwatch4",
		"flags interval, timeout"},
	{"ipset", "scanwatch", "ipset",
		`ipset destroy
ipset create scanwatch4 hash:ip family inet timeout 0 maxelem 200000
ipset create scanwatch4net hash:net family inet timeout 0 maxelem 200000
ipset create scanwatch6 hash:ip family inet6 timeout 0 maxelem 200000
ipset create scanwatch6net hash:net family inet6 timeout 0 maxelem 200000`,
		"ipset add scanwatch4 45.9.9.9; ipset add scanwatch4net 45.9.8.0/29",
		"ipset flush scanwatch4",
		"ipset create scanwatch4 hash:ip family inet timeout 0"},
}

func entries(left time.Duration, words ...string) (list []entry) {
	for _, p := range prefixes(words...) {
		list = append(list, entry{prefix: p, left: left})
	}
	return list
}

// TestFirewalls checks that changes reach real firewalls and are listed with their end
// times, and that missing sets and reloads are noticed.
func TestFirewalls(t *testing.T) {
	for _, f := range firewalls {
		t.Run(f.word, func(t *testing.T) {
			inNamespace(t, f.program)
			ctx := context.Background()
			target, err := openers[f.word](&rules.Companion{Target: f.word, Argument: f.argument})
			if err != nil {
				t.Fatal(err)
			}
			intact := func(least int) bool {
				t.Helper()
				ok, err := target.intact(ctx, func() int { return least })
				if err != nil {
					t.Fatal(err)
				}
				return ok
			}
			change := func(remove []netip.Prefix, add []entry) {
				t.Helper()
				if err := target.change(ctx, remove, add); err != nil {
					t.Fatal(err)
				}
			}
			has := func(want map[string]time.Duration) {
				t.Helper()
				got, err := target.list(ctx)
				if err != nil {
					t.Fatal(err)
				}
				words := map[string]time.Duration{}
				for p, left := range got {
					for _, whole := range []time.Duration{time.Hour, 2 * time.Hour, 24 * time.Hour} {
						if left <= whole && left > whole-10*time.Minute { // below this test's maximum timeout
							left = whole
						}
					}
					words[address(p)] = left
				}
				if !maps.Equal(words, want) {
					t.Errorf("content %v, want %v", words, want)
				}
			}
			if _, err := target.intact(ctx, func() int { return 0 }); err == nil || !strings.Contains(err.Error(), f.missing) {
				t.Errorf("without sets: %v", err)
			}
			shell(t, f.create)
			intact(0)
			has(map[string]time.Duration{})
			change(nil, slices.Concat(entries(time.Hour, "45.1.2.3", "2a0e::1", "45.2.0.0/16", "45.3.0.0/24", "45.3.1.0/24", "2a0e:1:2:3::/64"), entries(24*time.Hour, "45.1.2.4", "2a0e:1:2:4::/64")))
			has(map[string]time.Duration{"45.1.2.3": time.Hour, "2a0e::1": time.Hour, "45.2.0.0/16": time.Hour, "45.3.0.0/24": time.Hour, "45.3.1.0/24": time.Hour,
				"2a0e:1:2:3::/64": time.Hour, "45.1.2.4": 24 * time.Hour, "2a0e:1:2:4::/64": 24 * time.Hour})
			if !intact(8) {
				t.Error("its own changes are noticed")
			}
			// Renew some entries that do not exist, as if they had expired.
			renewed := entries(2*time.Hour, "45.1.2.4", "45.3.1.0/24", "45.7.7.7")
			for i := range renewed {
				renewed[i].renewed = true
			}
			change(prefixes("45.1.2.3", "45.99.1.1", "45.2.0.0/16", "45.98.0.0/16", "2a0e:1:2:4::/64", "2a0f::1"), slices.Concat(renewed, entries(time.Hour, "45.2.1.0/24")))
			has(map[string]time.Duration{"2a0e::1": time.Hour, "45.2.1.0/24": time.Hour, "45.3.0.0/24": time.Hour, "45.3.1.0/24": 2 * time.Hour,
				"2a0e:1:2:3::/64": time.Hour, "45.1.2.4": 2 * time.Hour, "45.7.7.7": 2 * time.Hour})
			shell(t, f.foreign)
			content, err := target.list(ctx)
			if err != nil || content[prefixes("45.9.9.9")[0]] != forever {
				t.Errorf("an entry of another program: %v, %v", content, err)
			}
			shell(t, f.create)
			if intact(5) {
				t.Error("a reload is not noticed")
			}
			has(map[string]time.Duration{})
			if got := shell(t, map[string]string{"nft": "nft list ruleset", "ipset": "ipset save"}[f.program]); strings.Contains(got, "45.") {
				t.Errorf("after the reload:\n%s", got)
			}
		})
	}
}

// TestIPSetsOfAnotherKind checks that an ipset that cannot hold the bans causes an error
// with a remedy.
func TestIPSetsOfAnotherKind(t *testing.T) {
	inNamespace(t, "ipset")
	row := firewalls[1]
	for change, want := range map[string]string{
		"ipset create scanwatch4 hash:ip family inet":             "set scanwatch4 has no timeout; remove it with ipset destroy scanwatch4, and create it with: ipset create scanwatch4 hash:ip family inet timeout 0",
		"ipset create scanwatch4 hash:ip family inet6 timeout 0":  "set scanwatch4 has no inet;",
		"ipset create scanwatch4 hash:net family inet timeout 0":  "set scanwatch4 has no hash:ip;",
		"ipset create scanwatch4 hash:ip family inet timeout 600": "",
	} {
		shell(t, row.create+"\nipset destroy scanwatch4\n"+change)
		target, err := openIPSet(&rules.Companion{Argument: row.argument})
		if err != nil {
			t.Fatal(err)
		}
		_, err = target.list(t.Context())
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", change, err, want)
		}
	}
}

// TestNetworkBetween checks the networks read from a set's interval boundaries, up to the
// last address. Ranges that are not networks must be recognised.
func TestNetworkBetween(t *testing.T) {
	for _, p := range prefixes("45.0.0.0/8", "45.1.2.0/23", "255.255.255.0/24", "128.0.0.0/1", "45.1.2.3", "2a0e::/16", "2a0e:1:2:3::/64", "ff00::/8") {
		if got := networkBetween(p.Addr(), after(p)); got != p {
			t.Errorf("%s is read as %s", p, got)
		}
	}
	for _, r := range [][2]string{{"45.1.2.0", "45.1.2.3"}, {"45.1.2.1", "45.1.2.3"}, {"45.1.2.0", "45.1.2.0"}, {"45.1.2.0", "45.1.1.0"}} {
		if got := networkBetween(netip.MustParseAddr(r[0]), netip.MustParseAddr(r[1])); got.IsValid() {
			t.Errorf("%v is the network %s", r, got)
		}
	}
}

// TestManual checks that the manual includes the set definitions that errors propose.
func TestManual(t *testing.T) {
	page, err := os.ReadFile("../../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range setsOf("scanwatch") {
		for _, line := range []string{nftDefinition(&s), s.creation()} {
			if !strings.Contains(string(page), line+"\n") {
				t.Errorf("the manual lacks: %s", line)
			}
		}
	}
}

// TestNFTSetsOfAnotherKind checks that the companion rejects sets with the wrong
// properties.
func TestNFTSetsOfAnotherKind(t *testing.T) {
	inNamespace(t, "nft")
	target, err := openNFTables(&rules.Companion{Target: "nftables", Argument: "inet filter scanwatch"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ from, to, want string }{
		{"scanwatch4 { type ipv4_addr; flags timeout;", "scanwatch4 { type ipv4_addr;", "a different set scanwatch4; define it as: set scanwatch4 { type ipv4_addr; flags timeout; }"},
		{"scanwatch4 { type ipv4_addr", "scanwatch4 { type ipv6_addr", "a different set scanwatch4;"},
		{"flags interval, timeout", "flags timeout", "a different set scanwatch4net;"},
		{"scanwatch6 {", "other6 {", "table inet filter lacks sets; add to it: set scanwatch6 { type ipv6_addr; flags timeout; }"},
	} {
		shell(t, "nft -f - <<'END'\nflush ruleset\ntable inet filter {"+strings.Replace(nftSets, c.from, c.to, 1)+"}\nEND")
		if _, err := target.intact(context.Background(), nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// cpuTime returns the CPU time used by this process and the programs it has run,
// including time in the kernel.
func cpuTime() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		_ = unix.Getrusage(who, &r) // cannot fail
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

// BenchmarkFirewalls measures the CPU time for adding 100,000 entries at startup, for
// listing them, and for making 100 changes.
func BenchmarkFirewalls(b *testing.B) {
	for _, f := range firewalls {
		for _, kind := range []string{"hosts", "networks6"} {
			b.Run(f.word+"/"+kind, func(b *testing.B) {
				inNamespace(b, f.program)
				ctx := context.Background()
				random := rand.New(rand.NewPCG(1, 2))
				seen := map[netip.Prefix]bool{}
				make := func(n int) (all []entry) {
					for len(all) < n {
						a := netip.AddrFrom4([4]byte{45, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())})
						p := netip.PrefixFrom(a, 32)
						if kind != "hosts" {
							p, _ = netip.AddrFrom16([16]byte{42, 14, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), 1}).Prefix(64)
						}
						if !seen[p] {
							seen[p] = true
							all = append(all, entry{prefix: p, left: time.Hour})
						}
					}
					slices.SortFunc(all, func(a, b entry) int { return a.prefix.Compare(b.prefix) })
					return all
				}
				var full, list, change time.Duration
				timed := func(sum *time.Duration, f func() error) {
					start := cpuTime()
					if err := f(); err != nil {
						b.Fatal(err)
					}
					*sum += cpuTime() - start
				}
				for range b.N {
					shell(b, f.create)
					target, err := openers[f.word](&rules.Companion{Target: f.word, Argument: f.argument})
					if err != nil {
						b.Fatal(err)
					}
					all := make(100_000)
					timed(&full, func() error { return target.change(ctx, nil, all) })
					timed(&list, func() error {
						got, err := target.list(ctx)
						if len(got) != len(all) { // the kernel was resizing the set
							b.Logf("list of %d entries of %d", len(got), len(all))
						}
						return err
					})
					for i := range 10 {
						var remove []netip.Prefix
						for _, e := range all[i*50 : i*50+50] {
							remove = append(remove, e.prefix)
						}
						more := make(50)
						timed(&change, func() error { return target.change(ctx, remove, more) })
					}
				}
				b.ReportMetric(full.Seconds()/float64(b.N), "s/full")
				b.ReportMetric(list.Seconds()/float64(b.N), "s/list")
				b.ReportMetric(change.Seconds()*1000/float64(b.N)/10, "ms/change")
			})
		}
	}
}
