package forward

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"scanwatch/cmd/internal/fetch"
	"scanwatch/internal/text"
)

// A destination receives the queue's data.
type destination interface {
	deliver(ctx context.Context, data []byte) error
}

// errRejected means that the destination will never accept the data.
var errRejected = errors.New("rejected")

// A laterError means that the destination requests a pause.
type laterError struct {
	error
	after time.Duration
}

// An unansweredError means that the server may have received and accepted the request.
type unansweredError struct{ error }

func (e unansweredError) Unwrap() error { return e.error }

// Limits of a request.
const (
	requestTimeout = 30 * time.Second
	maxReply       = 64 << 10
)

// client sends requests.
type client struct {
	http  http.Client
	agent string
	now   func() time.Time
}

func newClient(roots *x509.CertPool, agent string, now func() time.Time) *client {
	transport := fetch.Transport(roots)
	transport.IdleConnTimeout, transport.MaxIdleConns = time.Minute, 2
	return &client{agent: agent, now: now, http: http.Client{
		Timeout:   requestTimeout,
		Transport: transport,
		// A redirect would send the events to a server that the operator did not choose.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// post sends a request, and returns the start of the response. The error is nil if the server has
// accepted the request.
func (c *client) post(req *http.Request) (reply []byte, err error) {
	if req.Header.Get("User-Agent") == "" { // the header file may set User-Agent
		req.Header.Set("User-Agent", c.agent)
	}
	var sent atomic.Bool
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }}))
	resp, err := c.http.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // the error must not contain the URL, whose path may be a secret
			if wrapped.Timeout() {
				err = fmt.Errorf("no answer in %s", text.Duration(c.http.Timeout))
			}
		}
		err = fetch.Remedy(fetch.Redacted(err, req), err)
		if sent.Load() {
			err = unansweredError{err}
		}
		return nil, err
	}
	defer resp.Body.Close()
	reply, _ = io.ReadAll(io.LimitReader(resp.Body, maxReply)) // reading the response allows the connection to be reused
	return reply, c.judge(resp)
}

// judge converts a response's status to an error.
func (c *client) judge(resp *http.Response) error {
	err := fmt.Errorf("the server answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	switch resp.StatusCode / 100 {
	case 2:
		return nil
	case 3:
		return fmt.Errorf("%w; redirects are not followed, change the URL", err)
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: %w", errRejected, err)
	}
	if after := fetch.RetryAfter(resp.Header, c.now()); after > 0 {
		return laterError{err, after}
	}
	return err
}

// A webhook sends batches to a URL.
type webhook struct {
	*client
	url    string // URL, or the name of a file that contains it
	body   string // a format of rules.ForwardBodies
	key    string // key file; empty without signatures
	header string // header file; empty without an additional header
}

// Headers of a webhook's requests.
const (
	batchHeader     = "X-Scanwatch-Batch"
	timestampHeader = "X-Scanwatch-Timestamp"
	signatureHeader = "X-Scanwatch-Signature"
)

// deliver sends a batch. The files that contain the key, the header and the URL are read each time,
// so that the operator can change them.
func (w *webhook) deliver(ctx context.Context, data []byte) error {
	batch, err := decodeBatch(data)
	if err != nil {
		return err
	}
	if (w.body == "chat" || w.body == "text") && len(batch.lines(1)) == 0 {
		return nil // there is nothing to report to human readers
	}
	address, err := w.address()
	if err != nil {
		return err
	}
	body, kind := bodyOf(w.body, batch, data)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL is invalid")
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set(batchHeader, batch.ID)
	if w.header != "" {
		header, err := fetch.ReadHeader(w.header, "")
		if err != nil {
			return err
		}
		req.Header.Set(header[0], header[1])
	}
	if w.key != "" {
		key, err := fetch.ReadKey(w.key)
		if err != nil {
			return err
		}
		at := strconv.FormatInt(w.now().Unix(), 10)
		req.Header.Set(timestampHeader, at)
		req.Header.Set(signatureHeader, "sha256="+sign(key, at, body))
	}
	_, err = w.post(req)
	return err
}

// address returns the URL. Errors do not contain the URL, because it may be a secret.
func (w *webhook) address() (address string, err error) {
	address, where := w.url, "configuration"
	if strings.HasPrefix(w.url, "/") {
		where = w.url
		if address, err = fetch.ReadKey(w.url); err != nil {
			return "", err
		}
	}
	switch u, err := url.Parse(address); {
	case err != nil || u.Hostname() == "":
		return "", fmt.Errorf("%s: is not a URL", where)
	case u.Scheme != "https":
		return "", fmt.Errorf("%s: the URL does not begin with https://", where)
	case u.User != nil:
		return "", fmt.Errorf("%s: the URL must not contain a password; put an Authorization header in a file, and give its path with `header`", where)
	}
	return address, nil
}

// sign returns the HMAC-SHA256 of the time and the body.
func sign(key, at string, body []byte) string {
	h := hmac.New(sha256.New, []byte(key))
	_, _ = h.Write([]byte(at + ".")) // cannot fail
	_, _ = h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}

// maxLines is the maximum number of events in a human-readable message.
const maxLines = 30

// bodyOf returns a batch in the given format, and the media type. Messages for human readers
// contain no text from clients, because such text could mention members of a chat or imitate the
// chat's markup.
func bodyOf(format string, b *Batch, data []byte) (body []byte, kind string) {
	switch format {
	case "chat": // Slack, Mattermost, Rocket.Chat
		return encode(map[string]string{"text": chatText(b)}), "application/json"
	case "text":
		return []byte(b.text() + "\n"), "text/plain; charset=utf-8"
	case "kafka":
		type record struct {
			Key   string `json:"key"`
			Value any    `json:"value"`
		}
		records := []record{}
		for _, i := range b.Events {
			records = append(records, record{i.Src, i})
		}
		if b.Dropped > 0 || b.Gaps > 0 {
			records = append(records, record{"", map[string]any{"event": "dropped", "count": b.Dropped, "gaps": b.Gaps, "last": b.Until}})
		}
		return encode(map[string]any{"records": records}), "application/vnd.kafka.json.v2+json"
	}
	return bytes.TrimSpace(data), "application/json"
}

// text returns the message's text.
func (b *Batch) text() string {
	return "scanwatch on " + text.Escape(b.Host) + ":\n" + strings.Join(b.lines(maxLines), "\n")
}

// chatText returns the message's text in a form in which chat services find no links and no
// mentions.
func chatText(b *Batch) string {
	escaped := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "@", "(at)")
	return escaped.Replace(b.text())
}

// A writer writes each batch as a line.
type writer struct {
	w     io.Writer
	grace time.Duration // how long a reader may take after the context is done
	stuck bool          // a call of Write is blocked
}

// writeGrace is the default for writer.grace.
const writeGrace = time.Second

// errStuck means that the reader of a pipe is not reading a batch.
var errStuck = errors.New("standard output is not read")

func (w *writer) deliver(ctx context.Context, data []byte) error {
	if w.stuck {
		return errStuck
	}
	done := make(chan error, 1)
	go func() { // a write to a full pipe cannot be interrupted
		_, err := w.w.Write(append(bytes.TrimSpace(data), '\n'))
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	t := time.NewTimer(w.grace)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		w.stuck = true
		return errStuck
	}
}
