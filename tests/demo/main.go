//go:build linux

// Demo starts a real OpenSMTPD with filter-scanwatch, plays various sessions, and
// keeps the state directory. See tests/demo.sh.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"

	"scanwatch/tests/internal/smtpd"
)

// plays lists the demo's scenarios in order.
var plays = []string{
	"good-mail", "good-mail-ipv6", "null-sender", "ylmf-pc", "ylmf-pc-submission", "harvest", "relay-probe", "ssh",
	"http-lines", "http-one-write", "tls-hello", "pipelined", "own-address", "localhost-helo",
	"shadowserver", "shodan", "ec2", "drop",
}

func main() {
	filter := flag.String("filter", "", "the filter's program")
	then := flag.String("then", "", "shell command to run before the server stops")
	dir := flag.String("dir", "", "directory for the server and the state")
	version := flag.String("version", "7.6", "of OpenSMTPD")
	flag.Parse()
	if err := smtpd.Enter(); err != nil {
		fail(err)
	}
	if err := run(*filter, *dir, *version, *then); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "demo:", err)
	os.Exit(1)
}

func run(filter, dir, name, then string) error {
	for _, v := range smtpd.Versions {
		if v.Name == name {
			return demo(filter, dir, then, v)
		}
	}
	return fmt.Errorf("no version %s", name)
}

func demo(filter, dir, then string, v smtpd.Version) (err error) {
	s, err := smtpd.Start(smtpd.Options{
		Version: v,
		Dir:     dir,
		Socket:  true,
		Hosts:   smtpd.Hosts(),
		Filters: []smtpd.Filter{{Name: "scanwatch", Path: filter, Args: []string{"-s", smtpd.StateDir}}},
	})
	if err != nil {
		return err
	}
	defer func() {
		if e := s.Stop(); err == nil {
			err = e
		}
	}()
	fmt.Printf("OpenSMTPD %s is listening on %s port %d, in a separate network. Clients:\n\n", v.Name, smtpd.Addr4, smtpd.PortMX)
	for _, sc := range smtpd.Scenarios {
		for _, play := range plays {
			if sc.Name != play || sc.NeedsTLS && !v.TLS {
				continue
			}
			host := sc.Sessions[0].From
			if sc.Host.Name != "" {
				host = sc.Host.Name
			}
			fmt.Printf("  %s\n      from %s\n", sc.About, host)
			if _, err := s.Play(sc); err != nil {
				return err
			}
		}
	}
	if then == "" {
		return nil
	}
	cmd := exec.Command("sh", "-eu", "-c", then)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
