package fetch

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"scanwatch/filter/lookup/feed"
)

// Limits of a response.
const (
	maxRedirects = 5
	maxHeader    = 1024     // bytes of a header that is stored
	maxHeaders   = 64 << 10 // bytes of all headers
	// MaxRetryAfter is the longest pause that a server may request.
	MaxRetryAfter = 24 * time.Hour
)

// An answer is a server's response.
type answer struct {
	content    []byte
	validators validators
	retryAfter time.Time
	request    *http.Request
}

// validators identify a file's version (RFC 9110 section 8.8).
type validators struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"last_modified,omitempty"`
}

// url returns the feed's URL at the given time.
func (f *Feed) url(now time.Time) string {
	now = now.UTC()
	return strings.NewReplacer("%Y", now.Format("2006"), "%m", now.Format("01")).Replace(f.URL)
}

// key returns the header that contains the key, or two empty strings if there is no key.
func (f *Feed) key() (header [2]string, err error) {
	if f.KeyFile == "" {
		if f.Header != "" {
			return header, errors.New("the provider needs a key: write it to a file that only this user can read, and add to the statement: key \"file\"")
		}
		return header, nil
	}
	return ReadHeader(f.KeyFile, f.Header)
}

// ReadHeader returns the name and value of a header, read from a file that no other user can read.
// If name is not empty, the file may contain only the value. Errors never quote the file, because a
// key that contains a colon could be mistaken for a header's name.
func ReadHeader(file, name string) (header [2]string, err error) {
	content, err := ReadKey(file)
	if err != nil {
		return header, err
	}
	given, value, found := strings.Cut(content, ":")
	if !found {
		given, value = name, content
	}
	header = [2]string{strings.TrimSpace(given), strings.TrimSpace(value)}
	if !isToken(header[0]) || header[1] == "" {
		return [2]string{}, fmt.Errorf("%s: must contain one line with a header name and the key, such as Authorization: Bearer KEY", file)
	}
	if slices.Contains(protocolHeaders, http.CanonicalHeaderKey(header[0])) {
		return [2]string{}, fmt.Errorf("%s, line 1: the header %s belongs to the protocol and cannot carry a key", file, header[0])
	}
	return header, nil
}

// protocolHeaders lists the headers that net/http or this program sets or omits.
var protocolHeaders = []string{"Accept-Encoding", "Connection", "Content-Encoding", "Content-Length", "Content-Type", "Expect", "Host",
	"If-Modified-Since", "If-None-Match", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Range", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// isToken reports whether s is a valid header name (RFC 9110 section 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// CheckKey returns an error if a process that runs as the user uid cannot use a key's file. A
// negative uid means any user. CheckKey does not read the key.
func CheckKey(name string, uid int) error {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", name)
	case info.Mode()&0o077 != 0:
		return fmt.Errorf("other users can read %s; run chmod 600", name)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && uid >= 0 && int(s.Uid) != uid {
		return fmt.Errorf("%s belongs to another user; run chown", name)
	}
	return nil
}

// ReadKey returns the only line of a file that no other user can read.
func ReadKey(name string) (string, error) {
	file, err := feed.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: other users can read the key; run chmod 600", name)
	}
	content, err := io.ReadAll(io.LimitReader(file, maxHeader+1))
	if err != nil {
		return "", err
	}
	line := strings.TrimLeft(strings.TrimRight(string(content), " \t\r\n"), " \t")
	if line == "" || len(content) > maxHeader || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
		return "", fmt.Errorf("%s: must contain one line of at most %d characters", name, maxHeader)
	}
	return line, nil
}

// request fetches the file if it differs from the version with the given validators.
func (f *Feed) request(ctx context.Context, o Options, address string, key [2]string, have validators) (answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(o.Timeout, DefaultTimeout), errTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return answer{}, err
	}
	if req.URL.Scheme != "https" {
		return answer{}, fmt.Errorf("%s does not begin with https://", address)
	}
	req.Header.Set("User-Agent", o.Agent)
	if key[0] != "" {
		req.Header.Set(key[0], key[1])
	}
	if have.ETag != "" {
		req.Header.Set("If-None-Match", have.ETag)
	}
	if have.LastModified != "" {
		req.Header.Set("If-Modified-Since", have.LastModified)
	}
	transport := Transport(o.Roots)
	transport.DisableKeepAlives = true
	transport.DisableCompression = true // the size limit applies to the file
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, CheckRedirect: sameHost}
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }}
	resp, err := client.Do(req.WithContext(httptrace.WithClientTrace(ctx, trace)))
	if err != nil {
		if err = explain(ctx, err, req); !sent.Load() {
			err = unsentError{err}
		}
		return answer{}, err
	}
	defer resp.Body.Close()
	a, err := read(resp, o.Now(), have != validators{})
	a.request = req
	return a, explain(ctx, err, req)
}

// An unsentError means that a request was not sent, because there was no trusted connection.
type unsentError struct{ error }

// Transport returns the transport for requests. roots contains the certificate authorities; nil
// means the system's.
func Transport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		MaxResponseHeaderBytes: maxHeaders,
	}
}

var errTimeout = errors.New("no complete answer in time")

// explain returns the cause of a request's error, without the URL, because the result already
// contains the URL.
func explain(ctx context.Context, err error, req *http.Request) error {
	var wrapped *url.Error
	switch {
	case errors.Is(err, errUnchanged):
		return err
	case ctx.Err() != nil:
		// After a disconnect by the client, a server may end its response normally. Half of a
		// response would then look complete.
		return context.Cause(ctx)
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return errors.New("the server closed the connection without answering")
	case errors.As(err, &wrapped):
		err = wrapped.Err
	}
	return Remedy(Redacted(err, req), err)
}

// Remedy adds a remedy to err if there is one for its cause.
func Remedy(err, cause error) error {
	if errors.As(cause, new(x509.UnknownAuthorityError)) {
		return fmt.Errorf("%w; to trust a private CA, set SSL_CERT_FILE; see ENVIRONMENT in scanwatch(8)", err)
	}
	return err
}

// sameHost rejects redirects to other hosts, because the operator trusts only the URL's host.
func sameHost(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case req.URL.Scheme != "https" || !strings.EqualFold(req.URL.Host, via[0].URL.Host):
		return fmt.Errorf("redirected to another host, %s://%s; if that is right, change the URL", req.URL.Scheme, req.URL.Host)
	}
	return nil
}

// read reads a response.
func read(resp *http.Response, now time.Time, conditional bool) (a answer, err error) {
	if after := RetryAfter(resp.Header, now); after > 0 {
		a.retryAfter = now.Add(after)
	}
	switch {
	case resp.StatusCode == http.StatusNotModified && conditional:
		return a, errUnchanged
	case resp.StatusCode != http.StatusOK:
		return a, fmt.Errorf("the server answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	case resp.ContentLength > feed.MaxBytes:
		return a, fmt.Errorf("larger than %d MiB", feed.MaxBytes>>20)
	case resp.ContentLength < 0 && resp.ProtoMajor == 1 && len(resp.TransferEncoding) == 0:
		return a, errors.New("the server does not mark the end of the file, which may be incomplete")
	}
	a.content, err = io.ReadAll(io.LimitReader(resp.Body, feed.MaxBytes+1))
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return a, fmt.Errorf("incomplete: the connection ended after %d bytes", len(a.content))
	case err != nil:
		return a, err
	case len(a.content) > feed.MaxBytes:
		return a, fmt.Errorf("larger than %d MiB", feed.MaxBytes>>20)
	}
	a.validators = validators{ETag: stored(resp.Header.Get("ETag")), LastModified: stored(resp.Header.Get("Last-Modified"))}
	return a, nil
}

// stored returns a header if it can be sent again later.
func stored(header string) string {
	if len(header) > maxHeader || strings.ContainsFunc(header, func(r rune) bool { return r < ' ' || r > '~' }) {
		return ""
	}
	return header
}

// RetryAfter returns the duration in a Retry-After header (RFC 9110 section 10.2.3), at most
// MaxRetryAfter, or 0 without the header. If the header contains a date, it is compared with the
// response's own time, because now may be wrong.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, MaxRetryAfter)
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), MaxRetryAfter)
}

// uncompressed returns a file's content, decompressed if it is in gzip(1) format.
func uncompressed(content []byte) ([]byte, error) {
	if !bytes.HasPrefix(content, []byte{0x1f, 0x8b}) {
		return content, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(content))
	if err != nil {
		return nil, doubtf("gzip: %w", err)
	}
	content, err = io.ReadAll(io.LimitReader(z, feed.MaxBytes+1))
	switch {
	case err != nil:
		return nil, doubtf("gzip: %w", err)
	case len(content) > feed.MaxBytes:
		return nil, doubtf("uncompressed larger than %d MiB", feed.MaxBytes>>20)
	}
	return content, nil
}
