package rules

import (
	"net/url"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// A Download is the origin of a file that `scanwatch update` downloads. A Download is a URL, or the
// name of a feed in the catalogue. The zero Download means that the operator maintains the file.
type Download struct {
	URL   string
	Feed  string        // name of a feed in the catalogue
	Key   string        // file with the key for the provider; empty if no key is needed
	Every time.Duration // interval between downloads; 0 for the default
}

// These are the limits of Download.Every.
const (
	minEvery = 10 * time.Minute
	maxEvery = 60 * day
)

// downloadWords lists the first words of the parts of a Download.
var downloadWords = []string{"url", "feed", "key", "every"}

const downloadSyntax = `[url "https://..." | feed name [key "file"] [every duration]]`

// download parses a Download, which may be missing.
func (l *line) download() (d Download, err *Error) {
	switch at := l.peek(); {
	case l.accept("url"):
		at = l.peek()
		if d.URL, err = l.text("a URL"); err != nil {
			return d, err
		}
		if why := unusableURL(d.URL); why != "" {
			return d, l.errorf(at.pos, `write for example: url "https://example.org/list.txt"`, "%s", why)
		}
	case l.accept("feed"):
		if d.Feed, err = l.name("feed"); err != nil {
			return d, err
		}
	default:
		return d, nil
	}
	for err == nil {
		switch {
		case d.Key == "" && l.accept("key"):
			d.Key, err = l.text("a file name")
		case d.Every == 0 && l.accept("every"):
			d.Every, err = l.duration("the interval", minEvery, maxEvery)
		default:
			return d, nil
		}
	}
	return d, err
}

// unusableURL returns why a file cannot be downloaded from s, or "".
func unusableURL(s string) string {
	u, err := url.Parse(strings.NewReplacer("%Y", "2026", "%m", "01").Replace(s))
	switch {
	case err != nil:
		return "this is not a URL"
	case u.Scheme != "https":
		return "a URL begins with https://, because other protocols do not protect the data"
	case u.Hostname() == "":
		return "the URL has no host"
	case u.User != nil:
		return "the URL must not contain a password: put the key in a file, and give its path with `key`"
	case u.Fragment != "":
		return "a URL has no fragment (#)"
	}
	return unusablePort(u)
}

// IsZero reports whether the operator maintains the file.
func (d Download) IsZero() bool { return d == Download{} }

// suffix returns the text of d, which follows the name of the file.
func (d Download) suffix() string {
	var s string
	switch {
	case d.URL != "":
		s = " url " + quote(d.URL)
	case d.Feed != "":
		s = " feed " + d.Feed
	}
	if d.Key != "" {
		s += " key " + quote(d.Key)
	}
	if d.Every > 0 {
		s += " every " + text.Duration(d.Every)
	}
	return s
}

// parseDatabase parses the statements asn and country.
func parseDatabase(l *line) (Statement, *Error) {
	s := &Setting{Pos: l.toks[0].pos, Word: l.toks[0].text}
	var err *Error
	if s.Text, err = l.text("a file name"); err == nil {
		s.Download, err = l.download()
	}
	return s, err
}
