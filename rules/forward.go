package rules

import (
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"scanwatch/internal/text"
)

// RoleForward is the role of a companion that sends events to other programs.
const RoleForward Role = "forward"

// Forward holds the options of the statement `companion forward`.
type Forward struct {
	Body   string // format of the requests to a URL; see ForwardBodies
	Key    string // file with the key for signatures, or with the key for AbuseIPDB
	Header string // file with a header for the requests, such as Authorization
	Queue  string // directory of the queue; empty for the default
	Every  time.Duration
	Rate   int // maximum number of requests or messages in a minute; 0 for the default
}

// The destinations of `companion forward`, and what their arguments mean.
const (
	ForwardURL    = "url"
	ForwardSyslog = "syslog"
	ForwardStdout = "stdout"
	ForwardAbuse  = "abuseipdb"
)

var forwardTargets = []struct{ word, argument string }{
	{ForwardURL, `URL, as in "https://hooks.example.org/scanwatch", or a file that contains it`},
	{ForwardSyslog, `server, as in "tls://logs.example.org:6514", or a socket, as in "/dev/log"`},
	{ForwardStdout, ""},
	{ForwardAbuse, ""},
}

// ForwardTargets returns the destinations of `companion forward`.
func ForwardTargets() (words []string) {
	for _, t := range forwardTargets {
		words = append(words, t.word)
	}
	return words
}

// ForwardBodies lists the formats of requests to a URL. The first is the default.
var ForwardBodies = []string{"json", "chat", "text", "kafka"}

// These are the limits of Forward.
const (
	minForwardEvery = time.Second
	maxForwardEvery = time.Hour
	maxRate         = 1000
)

const forwardSyntax = `forward user name to url "https://..." [key "file"] ... | syslog "server" ... | stdout ... | abuseipdb key "file" ...`

func (c *Companion) parseForward(l *line) (err *Error) {
	if err = l.expect("to"); err != nil {
		return err
	}
	i, err := l.word("a destination", ForwardTargets())
	if err != nil {
		return err
	}
	c.Target = forwardTargets[i].word
	if what := forwardTargets[i].argument; what != "" {
		at := l.peek()
		if c.Argument, err = l.text("a " + what); err != nil {
			return err
		}
		if why := c.unusableDestination(); why != "" {
			return l.errorf(at.pos, "", "%s", why)
		}
	}
	f := &c.Forward
	for l.at < len(l.toks) && err == nil {
		t := l.next()
		switch {
		case t.is("format") && f.Body == "" && c.Target == ForwardURL:
			var body int
			body, err = l.word("a format of requests", ForwardBodies)
			f.Body = ForwardBodies[max(body, 0)]
		case t.is("key") && f.Key == "" && (c.Target == ForwardURL || c.Target == ForwardAbuse):
			f.Key, err = l.text("a file name")
		case t.is("header") && f.Header == "" && c.Target == ForwardURL:
			f.Header, err = l.text("a file name")
		case t.is("queue") && f.Queue == "" && c.Target != ForwardStdout:
			f.Queue, err = l.text("a directory")
		case t.is("every") && f.Every == 0:
			f.Every, err = l.duration("the interval", minForwardEvery, maxForwardEvery)
		case t.is("rate") && f.Rate == 0 && c.Target != ForwardStdout:
			f.Rate, err = l.number("the number a minute", 1, maxRate)
		default:
			return l.errorf(t.pos, "", "unexpected `%s`", t)
		}
	}
	if err == nil && c.Target == ForwardAbuse && f.Key == "" {
		return l.errorf(l.end(), "write your account's key to a file, and add: key \"file\"", "abuseipdb needs a key")
	}
	return err
}

// unusableDestination returns why the argument is not a valid destination, or "".
func (c *Companion) unusableDestination() string {
	if filepath.IsAbs(c.Argument) {
		return ""
	}
	if c.Target == ForwardURL {
		return unusableURL(c.Argument)
	}
	u, err := url.Parse(c.Argument)
	switch {
	case err != nil || !slices.Contains([]string{"udp", "tcp", "tls"}, u.Scheme):
		return "a syslog server begins with udp://, tcp:// or tls://"
	case u.Hostname() == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "":
		return "a syslog server's URL may contain only a host and an optional port after the scheme"
	}
	return unusablePort(u)
}

// unusablePort returns why the port in a URL is invalid, or "".
func unusablePort(u *url.URL) string {
	if n, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && (err != nil || n == 0) {
		return "a port is a number from 1 to 65535"
	}
	return ""
}

func (c *Companion) forwardString() string {
	s := " to " + c.Target
	if c.Argument != "" {
		s += " " + quote(c.Argument)
	}
	f := &c.Forward
	if f.Body != "" {
		s += " format " + f.Body
	}
	for _, o := range []struct{ word, value string }{{"key", f.Key}, {"header", f.Header}, {"queue", f.Queue}} {
		if o.value != "" {
			s += " " + o.word + " " + quote(o.value)
		}
	}
	if f.Every > 0 {
		s += " every " + text.Duration(f.Every)
	}
	if f.Rate > 0 {
		s += " rate " + strconv.Itoa(f.Rate)
	}
	return s
}

// forwardName returns the name of the companion. The path of a URL may be secret, so the name
// contains only the host of the URL.
func (c *Companion) forwardName() string {
	name := string(c.Role) + " " + c.Target
	if u, err := url.Parse(c.Argument); err == nil && u.Host != "" {
		return name + " " + u.Host
	}
	return strings.TrimSuffix(name+" "+c.Argument, " ")
}
