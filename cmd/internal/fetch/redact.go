package fetch

import (
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"scanwatch/internal/text"
)

const (
	maxErrorText = 300 // bytes
	secretPart   = 8   // bytes of a secret that an error may not contain
)

// publicHeaders lists request headers that contain no secrets.
var publicHeaders = []string{"Accept", "Content-Type", "If-Modified-Since", "If-None-Match", "User-Agent"}

// Redacted returns err with a text that other users may read. The server can choose parts of the
// original text, and may repeat the request in it. The new text is therefore escaped and at most
// 300 bytes long, and contains no part of the URL's path or of a secret header.
func Redacted(err error, req *http.Request) error {
	secrets := []string{req.URL.Path, req.URL.RequestURI()}
	for name, values := range req.Header {
		if !slices.Contains(publicHeaders, name) {
			secrets = append(secrets, values...)
		}
	}
	s := redact(err.Error(), secrets)
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !text.Visible(r) }) {
		s = text.Escape(s) // package feed has escaped its own messages
	}
	return redactedError{err, text.Cut(s, maxErrorText)}
}

// redact replaces parts of secrets.
func redact(s string, secrets []string) string {
	hidden := make([]bool, len(s))
	for _, secret := range secrets {
		n := min(len(secret), secretPart)
		for i := 0; n > 2 && i+n <= len(s); i++ {
			for j := i; j < i+n && strings.Contains(secret, s[i:i+n]); j++ {
				hidden[j] = true
			}
		}
	}
	var b strings.Builder
	for i := range len(s) {
		switch {
		case !hidden[i]:
			b.WriteByte(s[i])
		case i == 0 || !hidden[i-1]:
			b.WriteString("***")
		}
	}
	return b.String()
}

// A redactedError is an error whose text has been replaced.
type redactedError struct {
	error
	text string
}

func (e redactedError) Error() string { return e.text }

func (e redactedError) Unwrap() error { return e.error }
