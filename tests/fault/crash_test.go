//go:build linux

package fault

import (
	"bufio"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
	"scanwatch/tests/internal/filterproc"
)

// rounds is the number of kills in TestKillNine.
const rounds = 5

// TestKillNine kills the filter with SIGKILL at random times. All flushed records must remain, and
// no file may be corrupt.
func TestKillNine(t *testing.T) { killNine(t, rounds) }

func killNine(t *testing.T, kills int) {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	text := "mode observe\nstore \"" + dir + "\" keep 400d budget 512M\nrule ask observe phase helo match helo \"ylmf-pc\" reject ban 1d\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	const start = 1_793_620_800_000_000
	next, flushes := 1, 0
	var acknowledged [][2]int // first and last session of each run
	for range kills {
		p := filterproc.Start(t, "-f", conf)
		// The answer in a session means that the filter has processed the previous session.
		var done atomic.Int64
		asked := make(chan int)
		// Limit the number of sessions between flushes, because the filter drops records if too
		// many are waiting for the disk.
		room := make(chan struct{}, 2000)
		go func() {
			w := bufio.NewWriter(p.Server)
			id := next
			for ; ; id++ {
				room <- struct{}{}
				g := filterproc.Guest{ID: id, Src: fmt.Sprintf("20.%d.%d.%d", id>>16&255, id>>8&255, id&255), Port: 25, Helo: "ylmf-pc"}
				w.Reset(p.Server)
				_, requests := g.Stream(w, start+int64(id)*1000, p.Asked)
				err := w.Flush()
				for ; requests > 0 && err == nil; requests-- {
					_, err = p.Lines.ReadString('\n')
				}
				if err != nil {
					break
				}
				done.Store(int64(id - 1))
			}
			asked <- id
		}()
		conn, err := net.Dial("unix", filepath.Join(dir, "control.sock"))
		for err != nil { // the filter opens the socket after the handshake
			conn, err = net.Dial("unix", filepath.Join(dir, "control.sock"))
		}
		control := bufio.NewScanner(conn)
		control.Scan() // the greeting
		// Count the flushes before each kill, so that the test also works on a slow machine.
		flushed, before := 0, 0
		for n, least := 0, 1+rand.N(30); ; n++ {
			if n >= least && flushed >= next {
				time.AfterFunc(rand.N(20*time.Millisecond), func() { _ = p.Cmd.Process.Kill() })
				least = math.MaxInt
			}
			before = int(done.Load())
			if _, err := conn.Write([]byte("flush\n")); err != nil || !control.Scan() {
				break
			}
			if control.Text() != "{}" {
				t.Fatalf("flush answers %s", control.Text())
			}
			flushed = before
			flushes++
			for len(room) > 0 {
				<-room
			}
		}
		conn.Close()
		_ = p.Cmd.Wait()
		p.Server.Close()
		acknowledged = append(acknowledged, [2]int{next, flushed})
		for ended := false; !ended; {
			select {
			case last := <-asked:
				next, ended = last+1, true
			case <-room:
			}
		}
	}
	have := map[int]bool{}
	for _, r := range cli.Dump(t, dir) {
		id, _ := strconv.ParseInt(r.Session, 16, 64)
		have[int(id)] = true
	}
	sure, missing := 0, 0
	for _, run := range acknowledged {
		for id := run[0]; id <= run[1]; id++ {
			sure++
			if !have[id] {
				missing++
			}
		}
	}
	t.Logf("%d kills, %d flushes of %d sessions, %d sessions recorded", kills, flushes, sure, len(have))
	if missing > 0 {
		t.Errorf("%d flushed sessions are missing", missing)
	}
	if sure == 0 || flushes == 0 {
		t.Errorf("only %d flushes of %d sessions", flushes, sure)
	}
	cli.Run(t, dir, "fsck") // fails if any file is damaged
}
