// Recorder is a small filter that registers for the given events and phases, writes its
// input to a file, and answers every request with proceed.
package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	events := flag.String("events", "*", "report `events` to register, separated by commas")
	phases := flag.String("phases", "", "filter `phases` to register, separated by commas; not data-line")
	name := flag.String("out", "", "`file` to append to")
	flag.Parse()
	out, err := os.OpenFile(*name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err == nil {
		err = record(os.Stdin, os.Stdout, out, split(*events), split(*phases))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func record(stdin io.Reader, stdout, out io.Writer, events, phases []string) error {
	in := bufio.NewReader(stdin)
	for {
		line, err := in.ReadBytes('\n')
		// Write the line before the answer, so that a test that sees the answer will find
		// the line.
		if _, err := out.Write(line); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer := ""
		if string(line) == "config|ready\n" {
			for _, event := range events {
				answer += "register|report|smtp-in|" + event + "\n"
			}
			for _, phase := range phases {
				answer += "register|filter|smtp-in|" + phase + "\n"
			}
			answer += "register|ready\n"
		} else if bytes.HasPrefix(line, []byte("filter|")) {
			// A request has the form filter|version|time|smtp-in|phase|session|token|...
			f := strings.SplitN(strings.TrimSuffix(string(line), "\n"), "|", 8)
			if len(f) < 7 {
				return fmt.Errorf("filter request with %d fields: %q", len(f), line)
			}
			answer = "filter-result|" + f[5] + "|" + f[6] + "|proceed\n"
		}
		if _, err := io.WriteString(stdout, answer); err != nil {
			return err
		}
	}
}
