package feed

// This file implements the JSON and JSON lines formats.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"scanwatch/internal/prefix"
)

// decode decodes a document into a value. If the JSON is invalid, the error contains the line
// number.
func decode(content []byte, into any) error {
	err := json.Unmarshal(content, into)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fmt.Errorf("line %d: not JSON, or truncated: %w", lineAt(content, syntax.Offset), err)
	case errors.As(err, &kind):
		return fmt.Errorf("line %d: %q has the unexpected type %s", lineAt(content, kind.Offset), kind.Field, kind.Value)
	}
	return err
}

func lineAt(content []byte, offset int64) int {
	offset = max(0, min(offset, int64(len(content))))
	return bytes.Count(content[:offset], []byte("\n")) + 1
}

// date stores text as the date of the result if text has one of the layouts.
func (c *collector) date(text string, layouts ...string) {
	for _, layout := range layouts {
		if t, err := time.Parse(layout, text); err == nil {
			c.result.Date = t.UTC()
			return
		}
	}
}

const secondsUTC = "2006-01-02T15:04:05" // package time also accepts fractions of a second

// A dropLine is a line of any Spamhaus DROP list. Other keys are ignored.
type dropLine struct {
	CIDR      string `json:"cidr"`
	ASN       *int64 `json:"asn"`
	Type      string `json:"type"`
	Timestamp int64  `json:"timestamp"`
	Records   *int   `json:"records"`
	Copyright string `json:"copyright"`
}

func parseDrop(c *collector, content []byte) error {
	if !isJSON(content) {
		err := parseAddresses(c, content)
		// EDROP was merged into DROP in 2024 and has been empty ever since.
		c.mayBeEmpty = strings.Contains(c.result.Notice, "EDROP")
		return err
	}
	return parseDropLines(c, content, func(number int, line dropLine) bool {
		if line.CIDR != "" {
			c.address(number, line.CIDR)
		}
		return line.CIDR != ""
	})
}

func parseASNDrop(c *collector, content []byte) error {
	if !isJSON(content) {
		return parseASNList(c, content)
	}
	return parseDropLines(c, content, func(number int, line dropLine) bool {
		switch {
		case line.ASN == nil:
			return false
		case *line.ASN < 0 || *line.ASN > 1<<32-1:
			c.malform(number, fmt.Sprint(*line.ASN), "not an AS number")
		default:
			c.asn(number, uint32(*line.ASN))
		}
		return true
	})
}

// parseDropLines parses a file with an object on each line. The last line contains metadata.
// parseDropLines calls take for each object. take reports whether the object is an entry.
func parseDropLines(c *collector, content []byte, take func(int, dropLine) bool) error {
	count, complete := 0, false
	for number, text := range lines(content) {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		var line dropLine
		if len(text) > MaxLine || json.Unmarshal([]byte(text), &line) != nil {
			c.malform(number, text, "not a line with one JSON object")
			continue
		}
		if take(number, line) {
			count++
			continue
		}
		if line.Type != "metadata" {
			continue
		}
		complete = true
		if line.Timestamp > 0 {
			c.result.Date = time.Unix(line.Timestamp, 0).UTC()
		}
		c.notice(line.Copyright)
		if line.Records != nil && *line.Records != count {
			c.incomplete(number, fmt.Sprintf("the metadata gives %d entries, but the list has %d", *line.Records, count))
		}
	}
	if !complete {
		c.incomplete(0, "no metadata line at the end; the file may be truncated")
	}
	return nil
}

type awsPrefix struct {
	IPv4    string `json:"ip_prefix"`
	IPv6    string `json:"ipv6_prefix"`
	Service string `json:"service"`
}

func parseAWS(c *collector, content []byte) error {
	var doc struct {
		CreateDate   string      `json:"createDate"`
		Prefixes     []awsPrefix `json:"prefixes"`
		IPv6Prefixes []awsPrefix `json:"ipv6_prefixes"`
	}
	if err := decode(content, &doc); err != nil {
		return err
	}
	c.date(doc.CreateDate, "2006-01-02-15-04-05")
	for _, p := range append(doc.Prefixes, doc.IPv6Prefixes...) {
		if c.wants(p.Service) {
			c.address(0, p.IPv4+p.IPv6) // one of the two is empty
		}
	}
	return nil
}

func parseGoogle(c *collector, content []byte) error {
	var doc struct {
		CreationTime string `json:"creationTime"`
		Prefixes     []struct {
			IPv4    string `json:"ipv4Prefix"`
			IPv6    string `json:"ipv6Prefix"`
			Service string `json:"service"` // present only in cloud.json
		} `json:"prefixes"`
	}
	if err := decode(content, &doc); err != nil {
		return err
	}
	c.date(doc.CreationTime, secondsUTC)
	for _, p := range doc.Prefixes {
		if c.wants(p.Service) {
			c.address(0, p.IPv4+p.IPv6) // one of the two is empty
		}
	}
	return nil
}

func parseAzure(c *collector, content []byte) error {
	var doc struct {
		Values []struct {
			Name       string `json:"name"`
			Properties struct {
				Prefixes []string `json:"addressPrefixes"`
			} `json:"properties"`
		} `json:"values"`
	}
	if err := decode(content, &doc); err != nil {
		return err
	}
	for _, tag := range doc.Values {
		for _, p := range tag.Properties.Prefixes {
			if c.wants(tag.Name) {
				c.address(0, p)
			}
		}
	}
	return nil
}

func parseOracle(c *collector, content []byte) error {
	var doc struct {
		Updated string `json:"last_updated_timestamp"`
		Regions []struct {
			CIDRs []struct {
				CIDR string   `json:"cidr"`
				Tags []string `json:"tags"`
			} `json:"cidrs"`
		} `json:"regions"`
	}
	if err := decode(content, &doc); err != nil {
		return err
	}
	c.date(doc.Updated, secondsUTC)
	for _, region := range doc.Regions {
		for _, p := range region.CIDRs {
			if c.wants(p.Tags...) {
				c.address(0, p.CIDR)
			}
		}
	}
	return nil
}

func parseAbuseIPDBJSON(c *collector, content []byte) error {
	var doc struct {
		Meta struct {
			GeneratedAt string `json:"generatedAt"`
		} `json:"meta"`
		Data []struct {
			Address string `json:"ipAddress"`
		} `json:"data"`
	}
	if err := decode(content, &doc); err != nil {
		return err
	}
	c.date(doc.Meta.GeneratedAt, time.RFC3339)
	for _, entry := range doc.Data {
		c.address(0, entry.Address)
	}
	return nil
}

// parseJSON adds a document's addresses and prefixes to the list. If a key is selected, only the
// addresses and prefixes below the key are added. Other strings are ignored, because JSON files
// also contain names and descriptions.
func parseJSON(c *collector, content []byte) error {
	d := json.NewDecoder(bytes.NewReader(content))
	// A level is the state of the parser in an object or array. In an object, key reports whether
	// the next string is a key, and name is the latest key. wanted reports whether name, or the key
	// of an outer object, is the selected key.
	type level struct {
		object, key, wanted bool
		name                string
	}
	stack := []level{{wanted: c.value == All}}
	counted, line := int64(0), 1
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && len(stack) == 1 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: not JSON, or truncated: %w", lineAt(content, d.InputOffset()), err)
		}
		at := d.InputOffset()
		line += bytes.Count(content[counted:at], []byte("\n"))
		counted = at

		top := &stack[len(stack)-1]
		if delim, ok := token.(json.Delim); ok && (delim == ']' || delim == '}') {
			stack = stack[:len(stack)-1]
			continue
		}
		if top.object && top.key {
			top.key = false
			top.name, _ = token.(string)
			top.wanted = stack[len(stack)-2].wanted || top.name == c.value
			continue
		}
		wanted, name := top.wanted, top.name
		top.key = top.object
		switch token := token.(type) {
		case json.Delim:
			stack = append(stack, level{object: token == '{', key: token == '{', wanted: wanted, name: name})
		case string:
			p, dropped, err := prefix.Parse(token)
			switch {
			case err != nil:
			case wanted || c.wants(name):
				c.prefix(line, token, p, dropped)
			}
		}
	}
}
