package followlog

import (
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
		receiver(lines).ServeHTTP(w, httptest.NewRequest(c.method, "/", strings.NewReader(c.body)))
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
