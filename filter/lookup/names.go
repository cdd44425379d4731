package lookup

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// maxNameBytes is the maximum length of a name without its trailing dot. RFC 1035
// section 2.3.4 allows 255 bytes on the wire, and RFC 5321 section 4.5.3.1.2 allows 255
// bytes of text. A longer name matches nothing.
const maxNameBytes = 255

// Names maps host names and suffixes to values. Names finds the longest entry that matches a name.
// The zero Names is empty and ready to use.
//
// An entry has one of three forms:
//
//	mail.example.org   only that name
//	.example.org       example.org and every name below it
//	*.example.org      every name below example.org
//
// A suffix matches whole labels, so .example.org does not match badexample.org. ASCII case and one
// trailing dot are ignored. A name may contain any bytes except spaces and control characters,
// because it may come from a greeting.
type Names[V any] struct {
	nodes  map[string]nameNode // by name, without a leading "." or "*."
	values []V
	// labels is the largest number of labels in an entry. labels limits the time of a lookup,
	// because a client may choose a name with a hundred labels.
	labels int
}

// A nameNode holds the entries for a name in its three forms. Each field is the index of the
// entry's value plus 1, or 0 if there is no entry.
type nameNode struct {
	exact, self, below int32
}

// Add adds a name or suffix. If the name or suffix already exists, its value does not change.
func (n *Names[V]) Add(name string, v V) error {
	text, exact, self, below := name, true, false, false
	switch {
	case strings.HasPrefix(text, "*."):
		text, exact, below = text[2:], false, true
	case strings.HasPrefix(text, "."):
		text, exact, self, below = text[1:], false, true, true
	}
	text = strings.TrimSuffix(text, ".")
	if err := checkName(text); err != nil {
		return fmt.Errorf("name %q: %w", name, err)
	}
	text = lowerASCII(text)
	if n.nodes == nil {
		n.nodes = make(map[string]nameNode)
	}
	node, index, used := n.nodes[text], int32(len(n.values)+1), false
	for _, set := range []struct {
		wanted bool
		field  *int32
	}{{exact, &node.exact}, {self, &node.self}, {below, &node.below}} {
		if set.wanted && *set.field == 0 {
			*set.field, used = index, true
		}
	}
	if used {
		n.values = append(n.values, v)
		n.nodes[text] = node
		n.labels = max(n.labels, strings.Count(text, ".")+1)
	}
	return nil
}

// Len returns the number of entries.
func (n *Names[V]) Len() int { return len(n.values) }

// LookupBytes returns the value of the longest entry that matches name. An exact entry is preferred
// to a suffix of the same length. LookupBytes does not retain name.
func (n *Names[V]) LookupBytes(name []byte) (v V, ok bool) {
	var buf [maxNameBytes]byte
	name = foldName(&buf, name)
	if len(name) == 0 || len(n.nodes) == 0 {
		return v, false
	}
	// Search from the right for the start of the longest entry that is possible.
	start := len(name)
	for range n.labels {
		dot := bytes.LastIndexByte(name[:start], '.')
		if dot < 0 {
			start = 0
			break
		}
		start = dot
	}
	if start > 0 {
		start++ // skip the dot
	}
	for {
		if node, there := n.nodes[string(name[start:])]; there {
			index := node.below
			if start == 0 {
				index = node.exact
				if index == 0 {
					index = node.self
				}
			}
			if index > 0 {
				return n.values[index-1], true
			}
		}
		dot := bytes.IndexByte(name[start:], '.')
		if dot < 0 {
			return v, false
		}
		start += dot + 1
	}
}

// foldName copies name into buf in lower case, without its trailing dot. foldName returns nil if
// the name is too long.
func foldName(buf *[maxNameBytes]byte, name []byte) []byte {
	name = bytes.TrimSuffix(name, []byte{'.'})
	if len(name) > len(buf) {
		return nil
	}
	for i, c := range name {
		buf[i] = lowerByte(c)
	}
	return buf[:len(name)]
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// lowerASCII is like strings.ToLower, but leaves bytes other than ASCII unchanged.
func lowerASCII(s string) string {
	b := []byte(s)
	for i := range b {
		b[i] = lowerByte(b[i])
	}
	return string(b)
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("empty name")
	case len(name) > maxNameBytes:
		return fmt.Errorf("longer than %d bytes", maxNameBytes)
	case name[0] == '.' || name[len(name)-1] == '.' || strings.Contains(name, ".."):
		return errors.New("empty label between two dots")
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] == 0x7f {
			return errors.New("space or control character in a name")
		}
	}
	return nil
}
