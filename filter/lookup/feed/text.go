package feed

// This file implements the formats that consist of lines or columns.

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

	"scanwatch/internal/prefix"
)

// lines iterates over the lines of a file and their numbers. The lines have no line endings.
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

func isComment(line string) bool {
	return strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") || strings.HasPrefix(line, "//")
}

// entries iterates over the lines that contain an entry. Comments and surrounding spaces are
// removed. The first comment becomes the notice of the result.
func (c *collector) entries(content []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		for number, line := range lines(content) {
			line = strings.TrimSpace(line)
			if isComment(line) {
				c.notice(strings.TrimLeft(line, "#;/ \t"))
				continue
			}
			if i := strings.IndexAny(line, "#;"); i >= 0 {
				line = strings.TrimSpace(line[:i])
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

// firstWord returns the first field of a line without surrounding spaces. more reports whether
// other fields follow.
func firstWord(line string) (word string, more bool) {
	if i := strings.IndexFunc(line, isGap); i >= 0 {
		return line[:i], true
	}
	return line, false
}

func isGap(r rune) bool { return r == ',' || unicode.IsSpace(r) }

// leading adds the entries at the start of each part of a line. Commas separate the parts. An entry
// is an address, a range or an AS number. Remarks or counts may follow it. leading returns false if
// the line does not start with an entry.
func (c *collector) leading(number int, line string) bool {
	if strings.IndexFunc(line, isGap) < 0 { // fast path for most lines
		if p, dropped, err := prefix.Parse(line); err == nil {
			c.prefix(number, line, p, dropped)
			return true
		}
	}
	first := true
	for part := range strings.SplitSeq(line, ",") {
		rest := c.leadingWords(number, part)
		switch word, _ := firstWord(rest); {
		case first && len(rest) == len(strings.TrimSpace(part)):
			return false
		case looksAddress(word):
			c.malform(number, word, notPrefix)
		default:
			c.doubtRemark(number, rest)
		}
		first = false
	}
	return true
}

// leadingWords adds the entries at the start of a part. leadingWords returns the rest of the part.
func (c *collector) leadingWords(number int, part string) (rest string) {
	rest = strings.TrimSpace(part)
	for rest != "" {
		word, _ := firstWord(rest)
		if list, n := leadingRange(rest); n > 0 {
			for _, p := range list {
				c.prefix(number, rest[:n], p, false)
			}
			word = rest[:n]
		} else if p, dropped, err := prefix.Parse(word); err == nil {
			c.prefix(number, word, p, dropped)
		} else if asn, ok := parseASN(word, true); ok {
			c.asn(number, asn)
		} else {
			break
		}
		rest = strings.TrimSpace(rest[len(word):])
	}
	return rest
}

// leadingRange parses a range at the start of text, such as 192.0.2.1-192.0.2.9. leadingRange
// returns the prefixes that make up the range, and the length of the range in text.
func leadingRange(text string) (list []netip.Prefix, length int) {
	i := strings.IndexByte(text, '-')
	if i < 0 {
		return nil, 0
	}
	after := strings.TrimLeft(text[i+1:], " \t")
	word, _ := firstWord(after)
	first, err1 := netip.ParseAddr(strings.TrimSpace(text[:i]))
	last, err2 := netip.ParseAddr(word)
	if err1 != nil || err2 != nil {
		return nil, 0
	}
	if list = prefix.Range(first, last); list == nil {
		return nil, 0
	}
	return list, len(text) - len(after) + len(word)
}

// doubtRemark warns about a remark that contains an address, because the operator may have meant
// the address as an entry.
func (c *collector) doubtRemark(number int, remark string) {
	for word := range strings.FieldsFuncSeq(remark, isGap) {
		if _, _, err := prefix.Parse(word); err == nil {
			c.doubt(number, word, "ignored, because it is part of a remark; write it on a separate line")
			return
		}
	}
}

// parseAddresses adds the addresses at the start of each line.
func parseAddresses(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		word, _ := firstWord(line)
		if _, ok := parseASN(word, true); ok || !c.leading(number, line) {
			c.address(number, word)
		}
	}
	return nil
}

// parsePlain adds the addresses and AS numbers at the start of each line, or the name in the line.
// A name must be the only word in its line, so that prose is not read as a list of names.
func parsePlain(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		word, more := firstWord(line)
		if c.leading(number, line) {
			continue
		}
		if looksNumeric(word) {
			c.malform(number, word, notPrefix)
		} else if more {
			c.malform(number, line, "not an address or AS number, and more than one word")
		} else {
			c.name(number, word)
		}
	}
	return nil
}

// looksNumeric reports whether word is an address with a typing error rather than a name. No
// top-level domain is a number (RFC 3696 section 2), and no name contains a colon or a slash.
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
			// The first line may be a header.
		default:
			c.malform(number, word, "not an AS number")
		}
	}
	return nil
}

// parseDShield parses lines with a start address, an end address and a prefix length. A line that
// does not start with an address is a title.
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

// parseNFT adds the addresses between braces, commas and spaces.
func parseNFT(c *collector, content []byte) error {
	for number, line := range c.entries(content) {
		for word := range strings.FieldsFuncSeq(line, func(r rune) bool { return strings.ContainsRune(" \t,{}=", r) }) {
			if p, dropped, err := prefix.Parse(word); err == nil {
				c.prefix(number, word, p, dropped)
			} else if word[0] >= '0' && word[0] <= '9' {
				c.malform(number, word, notPrefix)
			}
		}
	}
	return nil
}

// addressColumns lists the titles of columns with addresses, in lower case.
var addressColumns = []string{"ip", "ipaddress", "ip_address", "ip address", "address", "prefix", "cidr", "network", "ip_prefix", "subnet"}

func parseGeofeed(c *collector, content []byte) error {
	return parseColumns(c, content, func([]string) (int, bool) { return 0, false })
}

// parseCSV parses the column whose title is in addressColumns. If the table has no titles, its
// first column must contain the addresses.
func parseCSV(c *collector, content []byte) error {
	return parseColumns(c, content, func(first []string) (int, bool) {
		for i, title := range first {
			if slices.Contains(addressColumns, strings.ToLower(strings.TrimSpace(title))) {
				return i, true
			}
		}
		return 0, false
	})
}

// parseColumns parses one column of a table. parseColumns passes the first row to choose, which
// returns the column. titles reports whether the first row contains titles.
func parseColumns(c *collector, content []byte, choose func([]string) (column int, titles bool)) error {
	r := csv.NewReader(bytes.NewReader(content))
	r.FieldsPerRecord = -1
	r.Comment = '#'
	r.LazyQuotes = true
	r.ReuseRecord = true
	column, first, titled := 0, true, false
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
			if column, titled = choose(row); titled {
				continue
			}
		}
		if column >= len(row) {
			line, _ := r.FieldPos(0)
			c.malform(line, row[0], "too few columns")
			continue
		}
		line, _ := r.FieldPos(column)
		text, others := strings.TrimSpace(row[column]), addressesBeside(row, column)
		switch {
		case text == "":
		case titled || others == 0:
			c.address(line, text)
		case others == len(row)-1:
			for _, cell := range row {
				c.address(line, strings.TrimSpace(cell))
			}
		default:
			c.malform(line, strings.Join(row, ","), "more than one address; write a range as 192.0.2.1-192.0.2.9")
		}
	}
}

// addressesBeside returns the number of other columns that contain an address.
func addressesBeside(row []string, column int) (n int) {
	for i, cell := range row {
		if i != column && looksAddress(strings.TrimSpace(cell)) {
			n++
		}
	}
	return n
}

// looksAddress reports whether word is an address, which may have a typing error. Counts, times and
// versions are not addresses.
func looksAddress(word string) bool {
	return strings.Count(word, ".") == 3 && looksNumeric(word) || strings.Count(word, ":") > 2 || isPrefix(word)
}

func isPrefix(word string) bool {
	_, _, err := prefix.Parse(word)
	return err == nil
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
