package serverlog

import (
	"bytes"
	"encoding/json"
)

// object calls visit for each member of a JSON object. object returns true if the object is
// complete. object does not validate the values, because this would take longer than all other
// work.
func object(b []byte, visit func(key, value []byte)) bool {
	b = space(b)
	if len(b) == 0 || b[0] != '{' {
		return false
	}
	for b = space(b[1:]); len(b) > 0 && b[0] != '}'; {
		n := valueEnd(b)
		if n < 2 || b[0] != '"' {
			return false
		}
		key, rest := b[1:n-1], space(b[n:])
		if len(rest) == 0 || rest[0] != ':' {
			return false
		}
		rest = space(rest[1:])
		if n = valueEnd(rest); n == 0 {
			return false
		}
		visit(key, rest[:n])
		if b = space(rest[n:]); len(b) > 0 && b[0] == ',' {
			if b = space(b[1:]); len(b) > 0 && b[0] == '}' {
				return false
			}
		} else if len(b) > 0 && b[0] != '}' {
			return false
		}
	}
	return len(b) > 0 && len(space(b[1:])) == 0
}

func space(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\n' || b[0] == '\r') {
		b = b[1:]
	}
	return b
}

// valueEnd returns the length of the JSON value at the start of b, or 0 if it is incomplete.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			n := stringEnd(b[i:])
			if n == 0 {
				return 0
			}
			if i += n - 1; depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']', ',':
			if depth == 0 {
				return i
			}
			if b[i] != ',' {
				if depth--; depth == 0 {
					return i + 1
				}
			}
		case ' ', '\t':
			if depth == 0 {
				return i
			}
		}
	}
	return 0
}

// stringEnd returns the length of the JSON string at the start of b, including its quotes, or 0 if
// it is incomplete.
func stringEnd(b []byte) int {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}

// str returns the value of a JSON string. If b is not a string, str returns "".
func str(b []byte) string {
	if len(b) < 2 || b[0] != '"' {
		return ""
	}
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b[1 : len(b)-1])
	}
	var s string
	_ = json.Unmarshal(b, &s)
	return s
}

// number returns the value of a JSON number. If the number has a sign or a fraction, number returns
// 0.
func number(b []byte) (n uint64) {
	for _, c := range b {
		if c < '0' || c > '9' || n > 1<<56 {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}
