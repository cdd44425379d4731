package followlog

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// TestReceiver checks which requests are accepted, and the records in them.
func TestReceiver(t *testing.T) {
	for _, c := range []struct {
		method, body string
		status       int
		want         []string
	}{
		{http.MethodPost, `{"a":1}`, http.StatusOK, []string{`{"a":1}`}},
		{http.MethodPost, "{\"a\":1}\n{\"b\":2}\n", http.StatusOK, []string{`{"a":1}`, `{"b":2}`}},
		{http.MethodPost, ` [{"a":1}, {"b":2}]`, http.StatusOK, []string{`{"a":1}`, `{"b":2}`}},
		{http.MethodPost, "", http.StatusOK, nil},
		{http.MethodPost, "{", http.StatusBadRequest, nil},
		{http.MethodPost, strings.Repeat(" ", maxBody+1), http.StatusBadRequest, nil},
		{http.MethodGet, "", http.StatusMethodNotAllowed, nil},
	} {
		lines := make(chan []byte, 10)
		w := httptest.NewRecorder()
		newReceiver(lines).ServeHTTP(w, httptest.NewRequest(c.method, "/", strings.NewReader(c.body)))
		close(lines)
		var got []string
		for line := range lines {
			got = append(got, string(line))
		}
		if w.Code != c.status || !slices.Equal(got, c.want) {
			t.Errorf("%s %.20q: status %d, records %q", c.method, c.body, w.Code, got)
		}
	}
}

// TestSentAgain checks that records of a request without a response count once, although they are
// sent again. Equal records in one request must count separately.
func TestSentAgain(t *testing.T) {
	const body = `{"a":1}{"a":1}{"b":2}`
	lines := make(chan []byte)
	h := newReceiver(lines)
	post := func(ctx context.Context) chan struct{} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(body)))
		}()
		return done
	}
	for range 2 { // the second request sends the first record again
		ctx, cancel := context.WithCancel(t.Context())
		done := post(ctx)
		got := string(<-lines)
		cancel()
		if <-done; got != `{"a":1}` {
			t.Errorf("record %s", got)
		}
	}
	for _, want := range [][]string{{`{"b":2}`}, {`{"a":1}`, `{"a":1}`, `{"b":2}`}} {
		done := post(t.Context())
		for _, one := range want {
			if got := string(<-lines); got != one {
				t.Errorf("record %s, want %s", got, one)
			}
		}
		<-done
	}
}

// TestListen checks that only this host can send records.
func TestListen(t *testing.T) {
	for file, ok := range map[string]bool{"http:127.0.0.1:0": true, "http:[::1]": false, "http:0.0.0.0:8025": false, "http:192.0.2.1:1": false, "http:": false} {
		l, err := listen(file)
		if (err == nil) != ok {
			t.Errorf("%s: %v", file, err)
		}
		if l != nil {
			l.Close()
		}
	}
}
