//go:build linux

package tests

import (
	"bufio"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

var kills = flag.Int("kills", 10, "how often TestKillNine kills the program")

// TestKillNine kills the program with signal 9 at random moments while it
// writes. What it had said to be flushed is there afterwards, and nothing is
// damaged.
func TestKillNine(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(t.TempDir(), "scanwatch.conf")
	text := "mode observe\nstore \"" + dir + "\" keep 400d budget 512M\nrule ask observe phase helo match helo \"ylmf-pc\" reject ban 1d\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	const start = 1_793_620_800_000_000
	next, flushes := 1, 0
	var acknowledged [][2]int // first and last session of each run
	for range *kills {
		p := begin(t, "-f", conf)
		// What a session did is folded when the next one has its answer.
		var done atomic.Int64
		asked := make(chan int)
		go func() {
			w := bufio.NewWriter(p.smtpd)
			id := next
			for ; ; id++ {
				g := guest{id: id, src: fmt.Sprintf("20.%d.%d.%d", id>>16&255, id>>8&255, id&255), port: 25, helo: "ylmf-pc"}
				w.Reset(p.smtpd)
				_, requests := g.stream(w, start+int64(id)*1000, p.asked)
				err := w.Flush()
				for ; requests > 0 && err == nil; requests-- {
					_, err = p.lines.ReadString('\n')
				}
				if err != nil {
					break
				}
				done.Store(int64(id - 1))
			}
			asked <- id
		}()
		conn, err := net.Dial("unix", filepath.Join(dir, "control.sock"))
		for err != nil { // the socket comes a moment after the handshake
			conn, err = net.Dial("unix", filepath.Join(dir, "control.sock"))
		}
		control := bufio.NewScanner(conn)
		control.Scan() // the greeting
		flushed := 0
		kill := time.AfterFunc(rand.N(600*time.Millisecond), func() { _ = p.cmd.Process.Kill() })
		for {
			before := int(done.Load())
			if _, err := conn.Write([]byte("flush\n")); err != nil || !control.Scan() {
				break
			}
			if control.Text() != "{}" {
				t.Fatalf("flush answers %s", control.Text())
			}
			flushed = before
			flushes++
		}
		kill.Stop()
		conn.Close()
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.smtpd.Close()
		acknowledged = append(acknowledged, [2]int{next, flushed})
		next = <-asked + 1
	}
	have := map[int]bool{}
	for _, r := range dump(t, dir) {
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
	t.Logf("%d kills, %d flushes of %d sessions, %d sessions are there", *kills, flushes, sure, len(have))
	if missing > 0 {
		t.Errorf("%d flushed sessions are missing", missing)
	}
	if sure == 0 || flushes == 0 {
		t.Errorf("only %d flushes of %d sessions", flushes, sure)
	}
	command(t, dir, "fsck") // fails if anything is damaged
}
