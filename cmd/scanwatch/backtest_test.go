package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"

	"scanwatch/filter"
	"scanwatch/filter/lookup"
	"scanwatch/filter/smtpd"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// mkHistory fills a state directory with a simulated day: legitimate clients, some of them unusual,
// a directory harvest and a brute-force attack. If enforce is set, the policy is enforced.
func mkHistory(dir string, enforce bool) int {
	if err := recordDay(dir, enforce); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func recordDay(dir string, enforce bool) error {
	text, err := rules.ReadyPolicy("standard")
	if err != nil {
		return err
	}
	tree, err := rules.Parse("standard.conf", func(string) ([]byte, error) { return text, nil })
	if err != nil {
		return err
	}
	policy, _, err := rules.Compile(tree, rules.Options{})
	if err != nil {
		return err
	}
	if enforce {
		policy = policy.InMode(rules.Enforce)
	}
	lists, err := lookup.Builtin()
	if err != nil {
		return err
	}
	type ended struct {
		end   time.Time
		id    uint64
		value []byte
	}
	var all []ended
	table := simulate.NewFilter(filter.Options{
		Lists:  func() *lookup.Lists { return lists },
		Log:    func([]byte) {},
		Record: func(end time.Time, id uint64, value []byte) { all = append(all, ended{end, id, slices.Clone(value)}) },
	})
	table.Use(&filter.Settings{Policy: policy})
	sessions := simulate.Merge(simulate.Day(1, 2000), simulate.Merge(
		simulate.Harvest(simulate.Attack{Seed: 1, Start: simulate.Midnight.Add(3 * time.Hour), Every: 4 * time.Minute, Sessions: 120, Each: 9}),
		simulate.Guess(simulate.Attack{Seed: 2, Start: simulate.Midnight.Add(9 * time.Hour), Every: 20 * time.Second, Sessions: 600, Each: 12})))
	if _, err := simulate.Play(table, smtpd.Requests(filter.Phases(policy)), sessions); err != nil {
		return err
	}
	table.Stop()
	slices.SortStableFunc(all, func(a, b ended) int { return cmp.Or(a.end.Compare(b.end)) })
	w := store.Open(dir, store.Options{Now: func() time.Time { return simulate.Midnight.Add(24 * time.Hour) }, Program: "test"})
	for _, s := range all {
		w.Add(s.end, s.id, s.value)
	}
	return w.Close()
}

// exitStatus runs a program that must exit with the given status.
func exitStatus(ts *testscript.TestScript, _ bool, args []string) {
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var ended *exec.ExitError
		if !errors.As(err, &ended) {
			ts.Fatalf("%v", err)
		}
		got = ended.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status %d, want %s", got, args[0])
	}
}

// TestBacktestExample checks that the example in the manual matches the output for the
// script's history.
func TestBacktestExample(t *testing.T) {
	page, err := os.ReadFile("../../man/scanwatch.8")
	if err != nil {
		t.Fatal(err)
	}
	archive, err := txtar.ParseFile("testdata/script/backtest.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.Files {
		if f.Name == "rule.txt" && !bytes.Contains(page, f.Data) {
			t.Errorf("the manual does not have\n%s", f.Data)
		}
	}
}
