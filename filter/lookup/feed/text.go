package feed

// Formats of lines and columns.

import (
	"bytes"
	"encoding/csv"
	"errors"
	"io"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// lines yields the lines of a file with their numbers, without the line end.
func lines(content []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		for number := 1; len(content) > 0; number++ {
			line, rest, _ := bytes.Cut(content, []byte("\n"))
			content = rest
			if !yield(number, string(line)) {
				return
			}
		}
	}
}

// trim must know the blanks that strings.Fields knows: what is left of a line
// has a first word.
func trim(s string) string { return strings.TrimSpace(s) }

func isComment(line string) bool {
	return strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") || strings.HasPrefix(line, "//")
}

// entries yields the lines that hold an entry, without comments and blanks
// around. The first comment becomes the notice.
func (c *collector) entries(content []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		for number, line := range lines(content) {
			line = trim(line)
			if isComment(line) {
				c.notice(strings.TrimLeft(line, "#;/ \t"))
				continue
			}
			if i := strings.IndexAny(line, "#;"); i >= 0 {
				line = trim(line[:i])
			}
			if line == "" {
				continue
			}
			if len(line) > MaxLine {
				c.malform(number, line, "line of more than "+strconv.Itoa(MaxLine)+" bytes")
				continue
			}
			if !yield(number, line) {
				return
			}
		}
	}
}

func (c *collector) notice(text string) {
	if c.result.Notice == "" {
		c.result.Notice = printable(text)
	}
}

// firstWord returns what strings.Fields returns first, of a line without blanks
// around, and whether there is more.
func firstWord(line string) (word string, more bool) {
	if i := strings.IndexFunc(line, unicode.IsSpace); i >= 0 {
		return line[:i], true
	}
	return line, false
}

// parseAddresses takes the first word of every line. What follows are remarks
// and counts.
func parseAddresses(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		word, _ := firstWord(line)
		c.address(number, word)
	}
	return nil
}

// parsePlain takes what a line is by its looks. Words after an address are
// remarks; a name stands alone, or every sentence would be a list of names.
func parsePlain(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		word, more := firstWord(line)
		if p, err := parsePrefix(word); err == nil {
			c.prefix(number, word, p)
		} else if asn, ok := parseASN(word, true); ok {
			c.asn(number, asn)
		} else if looksNumeric(word) {
			c.malform(number, word, err.Error())
		} else if more {
			c.malform(number, line, "neither an address nor an AS number, and more than one word")
		} else {
			c.name(number, word)
		}
	}
	return nil
}

// looksNumeric tells a mistyped address from a name: no top-level domain is a
// number (RFC 3696 section 2), and no name has a colon or a slash.
func looksNumeric(word string) bool {
	last := word[strings.LastIndexByte(word, '.')+1:]
	_, err := strconv.ParseUint(last, 10, 64)
	return err == nil || strings.ContainsAny(word, ":/")
}

func parseASNList(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		word := line
		if i := strings.IndexAny(line, ", \t"); i >= 0 {
			word = line[:i]
		}
		asn, ok := parseASN(word, false)
		switch {
		case ok:
			c.asn(number, asn)
		case c.result.Len() == 0 && c.malformed == 0 && strings.EqualFold(strings.Trim(word, `"`), "asn"):
			// the header line of a table
		default:
			c.malform(number, word, "not an AS number")
		}
	}
	return nil
}

// parseDShield takes start address and mask length. Lines that do not begin
// with an address are titles.
func parseDShield(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		words := strings.Fields(line)
		if _, err := netip.ParseAddr(words[0]); err != nil {
			continue
		}
		if len(words) < 3 {
			c.malform(number, line, "start, end and mask length expected")
			continue
		}
		c.address(number, words[0]+"/"+words[2])
	}
	return nil
}

// parseNFT takes every word between braces, commas and blanks that is an
// address.
func parseNFT(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		for word := range strings.FieldsFuncSeq(line, func(r rune) bool { return strings.ContainsRune(" \t,{}=", r) }) {
			if p, err := parsePrefix(word); err == nil {
				c.prefix(number, word, p)
			} else if word[0] >= '0' && word[0] <= '9' {
				c.malform(number, word, err.Error())
			}
		}
	}
	return nil
}

// addressColumns are the titles, in lower case, under which tables keep
// addresses.
var addressColumns = []string{"ip", "ipaddress", "ip_address", "ip address", "address", "prefix", "cidr", "network", "ip_prefix", "subnet"}

func parseGeofeed(c *collector, content []byte) error {
	return parseColumns(c, content, func([]string) (int, bool) { return 0, false })
}

// parseCSV takes the column with a title that promises addresses, or the first
// one of a table without titles.
func parseCSV(c *collector, content []byte) error {
	return parseColumns(c, content, func(first []string) (int, bool) {
		for i, title := range first {
			if slices.Contains(addressColumns, strings.ToLower(trim(title))) {
				return i, true
			}
		}
		return 0, false
	})
}

// parseColumns takes one column of a table. choose is asked with the first row
// which one, and whether that row is titles.
func parseColumns(c *collector, content []byte, choose func([]string) (column int, titles bool)) error {
	r := csv.NewReader(bytes.NewReader(content))
	r.FieldsPerRecord = -1
	r.Comment = '#'
	r.LazyQuotes = true
	r.ReuseRecord = true
	column, first := 0, true
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if first {
			first = false
			var titles bool
			if column, titles = choose(row); titles {
				continue
			}
		}
		if column >= len(row) {
			line, _ := r.FieldPos(0)
			c.malform(line, row[0], "too few columns")
			continue
		}
		line, _ := r.FieldPos(column)
		if text := trim(row[column]); text != "" {
			c.address(line, text)
		}
	}
}

func parseAbuseIPDB(c *collector, content []byte) error {
	switch {
	case isJSON(content):
		return parseAbuseIPDBJSON(c, content)
	case strings.Contains(firstLine(content), ","):
		return parseCSV(c, content)
	}
	return parseAddresses(c, content)
}
