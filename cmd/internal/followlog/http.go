package followlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"scanwatch/internal/safego"
)

// httpPrefix is the prefix of a File that is an address for records sent over HTTP.
const httpPrefix = "http:"

// maxBody is the maximum size of a request in bytes. requestTime limits the duration of a request.
const (
	maxBody     = 4 << 20
	requestTime = 30 * time.Second
)

// listen opens the socket for records at an address such as http:127.0.0.1:8025. Only this host may
// send records, because they contain no proof of their origin.
func listen(file string) (net.Listener, error) {
	text := strings.TrimPrefix(file, httpPrefix)
	addr, err := netip.ParseAddrPort(text)
	if err != nil || !addr.Addr().IsLoopback() {
		return nil, fmt.Errorf("address %q: must be a loopback address with a port, as in http:127.0.0.1:8025", text)
	}
	return net.Listen("tcp", addr.String())
}

// post reads the records in requests until the context ends.
func (f *Front) post(ctx context.Context) {
	lines := make(chan []byte)
	server := http.Server{
		Handler: newReceiver(lines), ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: 2 * requestTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	safego.Go(f.log, "receiving records", func() {
		if err := server.Serve(f.listener); !errors.Is(err, http.ErrServerClosed) {
			f.log.Error("records no longer received", "err", err)
		}
	})
	f.consume(ctx, lines, nil)
	server.Close()
}

// A receiver is an HTTP handler that passes on the records in a request: JSON objects or an array
// of objects. The receiver responds when all records have been read. If KumoMTA does not receive
// the response, it sends the records again, and the receiver must not count them twice.
type receiver struct {
	lines chan<- []byte

	mu         sync.Mutex
	unanswered map[uint64]int // number of records by hash
}

func newReceiver(lines chan<- []byte) *receiver {
	return &receiver{lines: lines, unanswered: make(map[uint64]int)}
}

func (h *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, "request too large or incomplete", http.StatusBadRequest)
		return
	}
	records, err := split(body)
	if err != nil {
		http.Error(w, "not JSON", http.StatusBadRequest)
		return
	}
	for i, record := range records {
		if h.again(record) {
			continue
		}
		select {
		case h.lines <- record:
		case <-r.Context().Done():
			h.expect(records[:i])
			return
		}
	}
	if err := http.NewResponseController(w).Flush(); err != nil || r.Context().Err() != nil {
		h.expect(records)
	}
}

// maxUnanswered is the maximum number of records that may be sent again.
const maxUnanswered = 100_000

// expect records that the records will be sent again.
func (h *receiver) expect(records []json.RawMessage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, record := range records {
		if len(h.unanswered) >= maxUnanswered {
			clear(h.unanswered)
		}
		h.unanswered[hashOf(record)]++
	}
}

// again reports whether the record was received in a request that was not answered.
func (h *receiver) again(record []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := hashOf(record)
	n := h.unanswered[id]
	if n > 1 {
		h.unanswered[id] = n - 1
	} else {
		delete(h.unanswered, id)
	}
	return n > 0
}

func hashOf(record []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(record)
	return h.Sum64()
}

// split splits a request into records.
func split(body []byte) (records []json.RawMessage, err error) {
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("[")) {
		err = json.Unmarshal(body, &records)
		return records, err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	for {
		var one json.RawMessage
		switch err := d.Decode(&one); {
		case errors.Is(err, io.EOF):
			return records, nil
		case err != nil:
			return nil, err
		}
		records = append(records, one)
	}
}
