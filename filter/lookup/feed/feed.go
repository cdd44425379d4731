// Package feed reads lists of addresses, networks and names in the forms in
// which others publish them: block lists, cloud ranges, scanners' own lists.
//
// It opens nothing and downloads nothing. A file is judged as a whole, because
// it takes the place of the one before: an error page, an empty file, and one
// that is no list are errors. What a list must not hold, since it would hit
// everybody or the site itself, is refused entry by entry.
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

// The limits of a file. What goes beyond them is an error, or for a line a
// refused entry.
const (
	MaxBytes   = 64 << 20
	MaxLine    = 4096    // bytes of one line in the line formats
	MaxEntries = 1 << 20 // prefixes, AS numbers and names together
)

// A Result is what a file holds. Entries are in the order of the file; twice
// the same is kept twice.
type Result struct {
	Format   string         // its name in the table of formats
	Prefixes []netip.Prefix // masked, IPv4 never as mapped IPv6
	ASNs     []uint32
	Names    []string // lower case: example.org, .example.org, *.example.org

	Refused  Problems // entries that were not taken
	Warnings Problems // entries that were taken, and oddities of the whole
	LeftOut  int      // entries that the option of the format does not ask for

	Date   time.Time // when the file was made, if it says so
	Notice string    // its first comment or copyright, which some terms want kept
}

// Len counts the entries.
func (r *Result) Len() int { return len(r.Prefixes) + len(r.ASNs) + len(r.Names) }

// Problems are the first of several and the number of all.
type Problems struct {
	First []Problem
	Total int
}

// A Problem is about one entry of a file.
type Problem struct {
	Line int    // from 1; 0 if it is about the file, or a JSON document without lines
	Text string // of the entry, made printable and cut
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

// Parse reads a file. The format is a name of the table, by itself or with its
// option and a value ("aws service EC2", "aws service all"); an empty format is
// found out by looking.
//
// With an error the Result, unless it is nil, tells how far reading came. It is
// not to be used as a list then.
func Parse(r io.Reader, format string) (*Result, error) {
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
	c := &collector{result: &Result{Format: f.Name}, value: value, lines: min(bytes.Count(content, []byte("\n"))+1, MaxEntries)}
	if err := f.parse(c, content); err != nil {
		return c.result, fmt.Errorf("as %s: %w", f.Name, err)
	}
	if err := c.judge(f); err != nil {
		return c.result, fmt.Errorf("as %s: %w", f.Name, err)
	}
	return c.result, nil
}

// notText says what a file is that is no list of any format.
func notText(content []byte) error {
	head := content[:min(len(content), 512)]
	start := bytes.TrimLeft(head, " \t\r\n")
	switch {
	case len(bytes.TrimLeft(content, " \t\r\n")) == 0:
		return errors.New("the file is empty")
	case len(start) > 0 && start[0] == '<':
		return errors.New("this is a web page, not a list: probably an error or login page was saved in its place")
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}), bytes.HasPrefix(head, []byte("PK\x03\x04")),
		bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte("\xfd7zXZ")):
		return errors.New("the file is compressed: unpack it first")
	case bytes.HasPrefix(head, []byte{0xff, 0xfe}), bytes.HasPrefix(head, []byte{0xfe, 0xff}):
		return errors.New("the file is UTF-16: save it as UTF-8")
	case bytes.IndexByte(head, 0) >= 0:
		return errors.New("the file is binary, not a list")
	}
	return nil
}

// chooseFormat finds the format of the given name, or the first that claims the
// content, and the value of its option.
func chooseFormat(text string, content []byte) (*Format, string, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		for i := range formats {
			if f := &formats[i]; f.sniff != nil && f.sniff(content) {
				return f, f.Default, nil
			}
		}
		return nil, "", errors.New("unknown kind of file: name its format")
	}
	for i := range formats {
		f := &formats[i]
		if f.Name != words[0] {
			continue
		}
		if len(words) == 1 {
			return f, f.Default, nil
		}
		switch {
		case f.Option == "":
			return nil, "", fmt.Errorf("format %s takes no option, found %q", f.Name, words[1])
		case words[1] != f.Option || len(words) == 2:
			return nil, "", fmt.Errorf("format %s is to be followed by nothing or by %q and a value, found %q",
				f.Name, f.Option, strings.Join(words[1:], " "))
		}
		return f, strings.Join(words[2:], " "), nil
	}
	var names []string
	for _, f := range formats {
		names = append(names, f.Name)
	}
	return nil, "", fmt.Errorf("unknown format %q, known are: %s", words[0], strings.Join(names, " "))
}

// Check tells whether format is one that Parse accepts, without a file.
func Check(format string) error {
	if strings.TrimSpace(format) == "" {
		return nil
	}
	_, _, err := chooseFormat(format, nil)
	return err
}

// Shrunk judges a new version of a list by the number of its entries: one that
// lost more than half, or all, is taken for a broken download. An old list of
// none sets no measure.
func Shrunk(before, now int) error {
	switch {
	case before == 0:
		return nil
	case now == 0:
		return fmt.Errorf("the list had %d entries and has none now", before)
	case now < before-before/2:
		return fmt.Errorf("the list shrank by more than half, from %d entries to %d", before, now)
	}
	return nil
}
