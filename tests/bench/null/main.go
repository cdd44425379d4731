// Null is a minimal filter for comparison. It answers every request with proceed. Its arguments are
// registrations such as report|smtp-in|link-connect.
package main

import (
	"bytes"
	"os"
)

func main() {
	var in, out []byte
	ready := false
	chunk := make([]byte, 64<<10)
	for {
		n, err := os.Stdin.Read(chunk)
		in = append(in, chunk[:n]...)
		rest := in
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			line := rest[:i]
			rest = rest[i+1:]
			switch {
			case len(line) > 0 && line[0] == 'f':
				out = answer(out, line)
			case !ready && string(line) == "config|ready":
				ready = true
				for _, arg := range os.Args[1:] {
					out = append(append(append(out, "register|"...), arg...), '\n')
				}
				out = append(out, "register|ready\n"...)
			}
		}
		in = append(in[:0], rest...)
		if len(out) > 0 {
			if _, err := os.Stdout.Write(out); err != nil {
				os.Exit(1)
			}
			out = out[:0]
		}
		if err != nil {
			return
		}
	}
}

// answer appends the answer to a request, which has the form
// filter|VERSION|TIME|smtp-in|PHASE|SESSION|TOKEN|...
func answer(out, line []byte) []byte {
	for range 5 {
		line = line[bytes.IndexByte(line, '|')+1:]
	}
	end := bytes.IndexByte(line, '|')
	if i := bytes.IndexByte(line[end+1:], '|'); i >= 0 {
		line = line[:end+1+i]
	}
	return append(append(append(out, "filter-result|"...), line...), "|proceed\n"...)
}
