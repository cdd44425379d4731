package lookup

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// maxNameBytes is the longest name there can be, without its trailing dot:
// RFC 1035 section 2.3.4 gives 255 bytes on the wire, RFC 5321 section 4.5.3.1.2
// the same as text. Whatever is longer is no name and matches nothing.
const maxNameBytes = 255

// Names maps host names and their suffixes to values and finds the longest one
// that covers a name. The zero value is empty and ready to use. Filling is for
// one goroutine; afterwards any number may look up.
//
// Three forms can be entered:
//
//	mail.example.org   that name only
//	.example.org       example.org and every name below it
//	*.example.org      every name below example.org
//
// Suffixes end at label borders: .example.org does not cover badexample.org.
// ASCII letters are compared without regard to case, and one trailing dot is
// ignored. A name may hold any bytes but blanks and control characters, since
// greetings do.
type Names[V any] struct {
	nodes  map[string]nameNode // by the name without the dot or star in front
	values []V
	// labels is the largest number of labels of any entry. It bounds the work
	// on a name made of a hundred labels, which a stranger may send.
	labels int
	// may has two bits for the hash of each entry (a Bloom filter), so that most
	// names, which none of them covers, need no look at the map. Its length is a
	// power of two.
	may []uint64
}

// A nameNode tells the values of one name, as index+1 into values, 0 for none.
type nameNode struct {
	exact, self, below int32
}

// Add enters a name or suffix. Of equal entries the first stays; that is no
// error.
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
		n.note(text)
		n.labels = max(n.labels, strings.Count(text, ".")+1)
	}
	return nil
}

// Len counts the entries.
func (n *Names[V]) Len() int { return len(n.values) }

// Lookup finds the value of the longest entry that covers name; an exact entry
// goes before a suffix of the same text.
func (n *Names[V]) Lookup(name string) (v V, ok bool) {
	if !covered(name, n.may, n.labels) {
		return v, false
	}
	var buf [maxNameBytes]byte
	return n.find(foldName(&buf, name))
}

// LookupBytes is Lookup on bytes, which it does not keep.
func (n *Names[V]) LookupBytes(name []byte) (v V, ok bool) {
	if !covered(name, n.may, n.labels) {
		return v, false
	}
	var buf [maxNameBytes]byte
	return n.find(foldName(&buf, name))
}

// note sets the bits of an entry, and those of all if there are too few bits: one
// in eight is set at most.
func (n *Names[V]) note(text string) {
	if len(n.nodes)*16 > len(n.may)*64 {
		n.may = make([]uint64, max(2*len(n.may), 1))
		for text := range n.nodes {
			set(n.may, hashBack(text))
		}
		return
	}
	set(n.may, hashBack(text))
}

// The hash of a name is made from its end (FNV-1a), so that one pass over a name
// makes those of all its suffixes.
const (
	hashBegin = 2166136261
	hashPrime = 16777619
)

func hashBack(text string) uint32 {
	h := uint32(hashBegin)
	for i := len(text) - 1; i >= 0; i-- {
		h = (h ^ uint32(text[i])) * hashPrime
	}
	return h
}

func set(bits []uint64, h uint32) {
	h ^= h >> 15
	bits[int(h>>12)&(len(bits)-1)] |= 1<<(h&63) | 1<<(h>>6&63)
}

// has looks at one word only, which is where both bits are.
func has(bits []uint64, h uint32) bool {
	h ^= h >> 15
	word := bits[int(h>>12)&(len(bits)-1)]
	return word>>(h&63)&(word>>(h>>6&63))&1 != 0
}

// covered tells whether an entry of up to so many labels may cover name. That none
// does is certain.
func covered[T string | []byte](name T, bits []uint64, labels int) bool {
	if len(bits) == 0 || len(name) == 0 || len(name) > maxNameBytes+1 {
		return false
	}
	end := len(name) - 1
	if name[end] == '.' {
		end--
	}
	h := uint32(hashBegin)
	for i := end; i >= 0; i-- {
		c := lowerByte(name[i])
		if c == '.' {
			if has(bits, h) {
				return true
			}
			if labels--; labels == 0 {
				return false
			}
		}
		h = (h ^ uint32(c)) * hashPrime
	}
	return has(bits, h)
}

func (n *Names[V]) find(name []byte) (v V, ok bool) {
	if len(name) == 0 || len(n.nodes) == 0 {
		return v, false
	}
	// From the right, find where the longest entry could begin.
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
		start++ // past the dot
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

// foldName copies name into buf in lower case and without its trailing dot. It
// returns nothing for what is too long to be a name.
func foldName[T string | []byte](buf *[maxNameBytes]byte, name T) []byte {
	length := len(name)
	if length > 0 && name[length-1] == '.' {
		length--
	}
	if length > len(buf) {
		return nil
	}
	for i := range length {
		buf[i] = lowerByte(name[i])
	}
	return buf[:length]
}

func lowerByte(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// lowerASCII is strings.ToLower for names: bytes above ASCII stay as they are.
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
			return errors.New("blank or control character in a name")
		}
	}
	return nil
}
