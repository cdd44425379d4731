//go:build linux

package main

// This file measures the CPU time per session of milters.

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// milters lists the milters. All milters play the same sessions. DIR is the programs'
// directory, and SOCKET the path of the socket.
var milters = []contestant{
	{name: "milter-scanwatch", build: goBuild("milter-scanwatch", "scanwatch/cmd/milter-scanwatch"),
		args: []string{"DIR/milter-scanwatch", "-f", "DIR/prompt.conf", "-s", "STATE", "-l", "unix:STATE/sock"}},
	{name: "go-milter, empty", build: goBuild("go-milter", "scanwatch/tests/bench/milter"), args: []string{"DIR/go-milter", "STATE/sock"}},
	{name: "libmilter, empty", build: []string{"cc", "-O2", "-o", "DIR/libmilter", "tests/bench/c/milter.c", "-lmilter", "-lpthread"},
		args: []string{"DIR/libmilter", "unix:STATE/sock"}},
}

// milterSessions is the number of sessions in a run. milterOpen is the number of concurrent
// sessions.
const (
	milterSessions = 10_000
	milterOpen     = 20
)

// milters measures the CPU time per session of milter-scanwatch and of empty milters.
func (b *bench) milters() error {
	if err := b.buildAll(milters); err != nil {
		return err
	}
	cpu := make([][]float64, len(milters))
	for range b.pairs {
		for i, c := range milters {
			if !b.has(c.name) {
				continue
			}
			perSession, err := b.milterRun(c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			cpu[i] = append(cpu[i], perSession)
		}
	}
	fmt.Fprintf(b.out, "\nsessions of a milter, each with a message\n")
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tCPU us a session\t")
	for i, c := range milters {
		if b.has(c.name) {
			fmt.Fprintf(w, "%s\t%.0f\t\n", c.name, median(cpu[i]))
		}
	}
	return w.Flush()
}

// milterRun starts a milter, plays sessions and returns the CPU time per session in microseconds.
// The time includes writing to disk.
func (b *bench) milterRun(c contestant) (perSession float64, err error) {
	state, err := os.MkdirTemp(b.dir, "state-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(state)
	args := b.place(c.args, state)
	one := &child{name: c.name, cmd: exec.Command(args[0], args[1:]...)}
	one.cmd.Stderr = &one.stderr
	if err := one.cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = one.cmd.Process.Kill()
		_ = one.cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w; it said:\n%s", err, one.stderr.String())
		}
	}()
	socket := filepath.Join(state, "sock")
	for range 500 { // until the milter listens
		conn, dialErr := net.Dial("unix", socket)
		if err = dialErr; err == nil {
			conn.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	n := milterSessions
	if b.quick {
		n = 100
	}
	r := &run{child: one, state: state, b: b}
	if err := playMilter(socket, n); err != nil {
		return 0, err
	}
	if err := r.settled(); err != nil {
		return 0, err
	}
	before := one.cpu()
	if err := playMilter(socket, n); err != nil {
		return 0, err
	}
	if err := r.settled(); err != nil {
		return 0, err
	}
	return (one.cpu() - before).Seconds() * 1e6 / float64(n), nil
}

// playMilter plays n sessions.
func playMilter(socket string, n int) error {
	var group sync.WaitGroup
	failed := make(chan error, milterOpen)
	for first := range milterOpen {
		group.Go(func() {
			for i := first; i < n; i += milterOpen {
				if err := milterSession(socket, i%hosts); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(failed)
	return <-failed
}

// milterSession plays a host's session that delivers a message, with Postfix's macros.
func milterSession(socket string, host int) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	name := fmt.Sprintf("mail%d.example.net", host)
	address := fmt.Sprintf("198.18.%d.%d", host/250, 1+host%250)
	for _, c := range []struct{ macros, command string }{
		{"", "O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff"},
		{"j\x00mx.example.org\x00{daemon_addr}\x00192.0.2.25\x00{daemon_port}\x0025\x00{client_ptr}\x00" + name + "\x00{client_resolve}\x00OK\x00", "C" + name + "\x004\x9c\x40" + address + "\x00"},
		{"", "H" + name + "\x00"},
		{"{mail_mailer}\x00local\x00", "M<a@example.net>\x00"},
		{"{rcpt_mailer}\x00local\x00{rcpt_addr}\x00user@example.org\x00", "R<user@example.org>\x00"},
		{"i\x0012345\x00", "T"},
		{"i\x0012345\x00", "E"},
	} {
		var packets []byte
		if c.macros != "" {
			packets = packet(packets, "D"+c.command[:1]+c.macros)
		}
		if _, err := conn.Write(packet(packets, c.command)); err != nil {
			return err
		}
		var head [5]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		if _, err := in.Discard(int(binary.BigEndian.Uint32(head[:])) - 1); err != nil {
			return err
		}
		if !strings.ContainsRune("caO", rune(head[4])) { // continue, accept, negotiation
			return fmt.Errorf("the answer to %q is %q", c.command, head[4])
		}
	}
	_, err = conn.Write(packet(nil, "Q"))
	if _, end := in.ReadByte(); !errors.Is(end, io.EOF) {
		err = errors.Join(err, end)
	}
	return err
}

// packet appends a packet in the milter protocol.
func packet(dst []byte, data string) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(data))), data...)
}
