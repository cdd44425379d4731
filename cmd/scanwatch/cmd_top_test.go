package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"scanwatch/cmd/internal/control"
	"scanwatch/store"
)

// topGoldens holds the screens and the recorded stream of package live.
const topGoldens = "../internal/live/testdata"

// topScreens contains keys that are pressed one after the other, with the golden file
// of the resulting screen.
var topScreens = []struct {
	golden        string
	width, height int
	keys          string
}{
	{"start", 80, 24, ""},
	{"findings", 80, 24, "s"},
	{"evidence", 80, 24, "e"},
	{"help", 80, 24, "?"},
	{"paused", 80, 24, "xp"},
	{"narrow", 60, 24, "peeeee"},
	{"large", 132, 40, ""},
	{"flat", 80, 8, ""},
}

// TestTopInTmux checks that a real terminal shows the golden screens, follows its
// size, and is restored.
func TestTopInTmux(t *testing.T) {
	tmux, err := exec.LookPath("tmux")
	if err != nil {
		if os.Getenv("SCANWATCH_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skipf("SKIP: top is not tried on a terminal: %v; install tmux", err)
	}
	dir, err := os.MkdirTemp("", "sw") // a short name for the sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	stream, err := os.ReadFile(filepath.Join(topGoldens, "events.json"))
	if err != nil {
		t.Fatal(err)
	}
	status := control.Status{Live: control.Live{Sessions: 12, Delayed: 3}, Config: control.Config{Mode: "enforce", Rules: 7},
		Store: store.Status{Added: 4711, Quarantined: 1}}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() {
		defer close(served)
		(&control.Server{Commands: []control.Command{
			control.StatusCommand(func() control.Status { return status }),
			{Name: "watch", Args: 2, Run: func(ctx context.Context, a *control.Answer, _ []string) error {
				if err := a.JSON(struct{}{}); err != nil {
					return err
				}
				_, err := a.Write(stream)
				<-ctx.Done()
				return err
			}},
		}}).Run(ctx, dir, time.Second)
	}()
	defer func() { stop(); <-served }()
	for { // until it listens; the time limit of go test ends the loop
		if c, err := control.Dial(dir); err == nil {
			c.Close()
			break
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// TestMain chooses the program by the name of the file.
	if err := os.Symlink(self, filepath.Join(dir, "scanwatch")); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(tmux, append([]string{"-S", filepath.Join(dir, "tmux"), "-f", "/dev/null"}, args...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=", "PS1=> ", "NO_COLOR=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	// await reads the screen until it is as wanted. The limit is for failures only.
	await := func(what string, wanted func(string) bool) {
		t.Helper()
		var got string
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
			if got = run("capture-pane", "-p"); wanted(got) {
				return
			}
		}
		t.Fatalf("%s: the screen is\n%s", what, got)
	}
	shows := func(name string) {
		t.Helper()
		want, err := os.ReadFile(filepath.Join(topGoldens, name+".golden"))
		if err != nil {
			t.Fatal(err)
		}
		await(name, func(got string) bool { return got == string(want) })
	}
	coloured := func() bool {
		return regexp.MustCompile(`\x1b\[(\d+;)*3[0-7][;m]`).MatchString(run("capture-pane", "-e", "-p"))
	}
	command := func(after string) string {
		return fmt.Sprintf("%s -s %s top; echo status $?; %s", filepath.Join(dir, "scanwatch"), dir, after)
	}
	run("new-session", "-d", "-x", "80", "-y", "24", "sh")
	defer run("kill-server")
	run("send-keys", "-l", command("stty -a | tr -s ' ;' '\\n' | grep -x -e echo -e icanon"))
	run("send-keys", "Enter")
	for _, s := range topScreens {
		run("resize-window", "-x", fmt.Sprint(s.width), "-y", fmt.Sprint(s.height))
		for _, key := range s.keys {
			run("send-keys", "-l", string(key))
		}
		shows(s.golden)
		if s.golden == "start" && !coloured() {
			t.Error("without colours")
		}
	}
	run("resize-window", "-x", "80", "-y", "24")
	run("send-keys", "q")
	await("the end", func(got string) bool {
		return strings.Contains(got, "status 0\nicanon\necho\n") && !strings.Contains(got, "SOURCE")
	})
	// The filter ends.
	run("send-keys", "-l", "clear; NO_COLOR=1 "+command(""))
	run("send-keys", "Enter")
	shows("start")
	if coloured() {
		t.Error("with colours, although there is NO_COLOR")
	}
	run("send-keys", "C-z")
	await("the shell", func(got string) bool { return strings.Contains(got, "Stopped") && !strings.Contains(got, "SOURCE") })
	run("send-keys", "-l", "fg; echo status $?")
	run("send-keys", "Enter")
	shows("start")
	stop()
	await("the end of the filter", func(got string) bool {
		return strings.Contains(got, "disconnected; the filter stopped") && strings.Contains(got, "status 1\n")
	})
}
