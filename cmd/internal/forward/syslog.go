package forward

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"scanwatch/filter/events"
	"scanwatch/internal/text"
)

// A syslog sends the events in batches as syslog messages (RFC 5424).
type syslog struct {
	address string // URL, or a socket's path
	roots   *x509.CertPool
	pid     int
}

// Parts of a message.
const (
	facilityMail   = 2
	severityNotice = 5
	severityInfo   = 6
	// structure is the name of the structured data. 32473 is the enterprise number for
	// examples (RFC 5612).
	structure  = "scanwatch@32473"
	maxMessage = 2048 // RFC 5424 section 6.1
)

func (s *syslog) deliver(ctx context.Context, data []byte) error {
	b, err := decodeBatch(data)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	conn, stream, err := s.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	var out bytes.Buffer
	for _, message := range s.messages(b) {
		if stream { // octet counting (RFC 6587)
			fmt.Fprintf(&out, "%d ", len(message))
		}
		out.Write(message)
		if !stream {
			if _, err := out.WriteTo(conn); err != nil {
				return err
			}
		}
	}
	if _, err := out.WriteTo(conn); err != nil {
		return err
	}
	return conn.Close()
}

// dial connects to the server, and reports whether the connection is a stream.
func (s *syslog) dial(ctx context.Context) (conn net.Conn, stream bool, err error) {
	d := &net.Dialer{}
	if strings.HasPrefix(s.address, "/") {
		conn, err = d.DialContext(ctx, "unixgram", s.address)
		return conn, false, err
	}
	u, err := url.Parse(s.address)
	if err != nil {
		return nil, false, err
	}
	port := map[string]string{"udp": "514", "tcp": "601", "tls": "6514"}[u.Scheme]
	host := net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
	if u.Scheme == "tls" {
		t := &tls.Dialer{NetDialer: d, Config: &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12}}
		conn, err = t.DialContext(ctx, "tcp", host)
		return conn, true, err
	}
	conn, err = d.DialContext(ctx, u.Scheme, host)
	return conn, u.Scheme == "tcp", err
}

// messages converts a batch to messages.
func (s *syslog) messages(b *Batch) (all [][]byte) {
	add := func(severity int, at time.Time, id string, data []string, words string) {
		var m bytes.Buffer
		fmt.Fprintf(&m, "<%d>1 %s %s scanwatch %d %s [%s", facilityMail*8+severity, at.UTC().Format("2006-01-02T15:04:05.000000Z"),
			cmp.Or(name(b.Host, 255), "-"), s.pid, cmp.Or(name(id, 32), "-"), structure)
		for i := 0; i+1 < len(data); i += 2 {
			if data[i+1] != "" {
				fmt.Fprintf(&m, " %s=\"%s\"", data[i], param.Replace(ascii(data[i+1])))
			}
		}
		m.WriteString("] " + ascii(words))
		all = append(all, m.Bytes()[:min(m.Len(), maxMessage)])
	}
	for _, i := range b.Events {
		severity := severityInfo
		if i.Event == "ban" || i.Event == "unban" {
			severity = severityNotice
		}
		add(severity, i.Last, i.Event, []string{"src", i.Src, "prefix", i.Prefix, "count", fmt.Sprint(i.Count), "evidence", i.Evidence,
			"confidence", i.Confidence, "rule", i.Rule, "decision", i.Decision, "would", i.Would, "tag", i.Tag, "by", i.By, "reason", i.Reason,
			"session", strings.Join(i.Sessions, ",")}, i.summary())
	}
	if b.Dropped > 0 || b.Gaps > 0 {
		add(severityNotice, b.Until, "dropped", []string{"count", fmt.Sprint(b.Dropped), "gaps", fmt.Sprint(b.Gaps)}, strings.Join((&Batch{Dropped: b.Dropped, Gaps: b.Gaps}).lines(1), ", "))
	}
	return all
}

// ascii escapes all characters except printable ASCII. The operator's reason may contain any
// characters.
func ascii(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return s
	}
	return string(events.AppendASCII(nil, []byte(text.Escape(s))))
}

// param escapes a parameter's value.
var param = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`)

// name converts s to a header field of a message: printable ASCII without spaces.
func name(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return s[:min(len(s), most)]
}
