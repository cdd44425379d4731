// Package feed parses published lists of addresses, prefixes and names, such as block lists, cloud
// ranges and lists of scanners.
//
// The package does not download files. A new file replaces the whole previous one. Parse therefore
// returns an error if the file is an error page, empty, or not a list for another reason. Parse
// rejects entries that contain all addresses or a local network.
package feed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// These are limits on a file. If the file is too large, Parse returns an error. If a line is too
// long, Parse rejects the line.
const (
	MaxBytes   = 64 << 20
	MaxLine    = 4096    // length of a line in bytes, for formats with lines
	MaxEntries = 1 << 20 // number of prefixes, AS numbers and names together
)

// A Result contains the entries of a file in the order of the file. The entries may contain
// duplicates.
type Result struct {
	Format   string         // name of the format
	Prefixes []netip.Prefix // without host bits; IPv4-mapped prefixes become IPv4
	ASNs     []uint32
	Names    []string // in lower case: example.org, .example.org or *.example.org

	Refused  Problems // rejected entries
	Warnings Problems // problems with valid entries or with the file
	Doubts   Problems // warnings about entries that the operator may not have intended
	LeftOut  int      // number of entries that the format's option does not select
	Wide     int      // number of rejected prefixes that are wider than Widest and contain hosts

	Incomplete string    // warning that the file may lack entries; empty if there is none
	Date       time.Time // date of the file; zero if unknown
	Notice     string    // first comment or copyright, which some licences require
}

// Len returns the number of entries.
func (r *Result) Len() int { return len(r.Prefixes) + len(r.ASNs) + len(r.Names) }

// Problems holds the first few problems and the number of all problems.
type Problems struct {
	First []Problem
	Total int
}

// A Problem is about an entry or about the whole file.
type Problem struct {
	Line int    // line number; 0 for a JSON document or the whole file
	Text string // entry, escaped and truncated
	Why  string
}

func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Text != "" {
		fmt.Fprintf(&b, "%s: ", p.Text)
	}
	b.WriteString(p.Why)
	return b.String()
}

const maxProblems = 20

func (p *Problems) add(problem Problem) {
	p.Total++
	if len(p.First) < maxProblems {
		problem.Text = printable(problem.Text)
		p.First = append(p.First, problem)
	}
}

// Parse parses a file. format is the name of a Format, which the value of its option may follow
// ("aws service EC2", "aws service all"). If format is empty, Parse detects it.
//
// If Parse returns an error, the Result is nil or contains the part of the list that was read, for
// diagnostics.
func Parse(r io.Reader, format string) (*Result, error) { return parse(r, format, false) }

// ParseExempt is like Parse, but for a list of exempt hosts. A list of exempt hosts may contain
// local addresses.
func ParseExempt(r io.Reader, format string) (*Result, error) { return parse(r, format, true) }

func parse(r io.Reader, format string, private bool) (*Result, error) {
	content, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read feed: %w", err)
	}
	if len(content) > MaxBytes {
		return nil, fmt.Errorf("larger than %d MiB", MaxBytes>>20)
	}
	content = bytes.TrimPrefix(content, []byte("\ufeff"))
	if err := notText(content); err != nil {
		return nil, err
	}
	f, value, err := chooseFormat(format, content)
	if err != nil {
		return nil, err
	}
	c := &collector{private: private, result: &Result{Format: f.Name}, value: value, lines: min(bytes.Count(content, []byte("\n"))+1, MaxEntries)}
	if err := f.parse(c, content); err != nil {
		return c.result, fmt.Errorf("as %s: %w", f.Name, err)
	}
	if c.result.Len() == 0 && !c.mayBeEmpty && !hasLines(content) {
		return c.result, ErrEmpty
	}
	if err := c.judge(f); err != nil {
		return c.result, fmt.Errorf("as %s: %w", f.Name, err)
	}
	return c.result, nil
}

// ErrEmpty is returned by Parse if the file contains only comments and empty lines.
var ErrEmpty = errors.New("the file has no entries")

// hasLines reports whether content has a line that is neither empty nor a comment.
func hasLines(content []byte) bool {
	for _, line := range lines(content) {
		if line = strings.TrimSpace(line); line != "" && !isComment(line) {
			return true
		}
	}
	return false
}

// notText returns an error for content that is not text.
func notText(content []byte) error {
	head := content[:min(len(content), 512)]
	start := bytes.TrimLeft(head, " \t\r\n")
	switch {
	case len(bytes.TrimLeft(content, " \t\r\n")) == 0:
		return ErrEmpty
	case len(start) > 0 && start[0] == '<':
		return errors.New("the file is a web page, not a list; it may be an error page or a login page")
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}), bytes.HasPrefix(head, []byte("PK\x03\x04")),
		bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte("\xfd7zXZ")):
		return errors.New("the file is compressed; uncompress it first")
	case bytes.HasPrefix(head, []byte{0xff, 0xfe}), bytes.HasPrefix(head, []byte{0xfe, 0xff}):
		return errors.New("the file is UTF-16; convert it to UTF-8")
	case bytes.IndexByte(head, 0) >= 0:
		return errors.New("the file is binary, not a list")
	}
	return nil
}

// chooseFormat returns the format with the given name and the value of its option. If text is
// empty, chooseFormat returns the first format that matches the content.
func chooseFormat(text string, content []byte) (*Format, string, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		for i := range formats {
			if f := &formats[i]; f.sniff != nil && f.sniff(content) {
				return f, f.Default, nil
			}
		}
		return nil, "", errors.New("file format not recognized; specify the format")
	}
	var names []string
	for i := range formats {
		f := &formats[i]
		names = append(names, f.Name)
		if f.Name != words[0] {
			continue
		}
		switch {
		case len(words) == 1:
			return f, f.Default, nil
		case f.Option == "":
			return nil, "", fmt.Errorf("format %s has no option, found %q", f.Name, words[1])
		case words[1] != f.Option || len(words) == 2:
			return nil, "", fmt.Errorf("format %s may only be followed by %q and a value, found %q",
				f.Name, f.Option, strings.Join(words[1:], " "))
		}
		return f, strings.Join(words[2:], " "), nil
	}
	return nil, "", fmt.Errorf("unknown format %q; the formats are: %s", words[0], strings.Join(names, " "))
}

// Check returns an error if Parse does not accept the format.
func Check(format string) error {
	if strings.TrimSpace(format) == "" {
		return nil
	}
	_, _, err := chooseFormat(format, nil)
	return err
}
