package followlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"scanwatch/internal/safego"
)

// httpPrefix begins a File that is an address for records by HTTP.
const httpPrefix = "http:"

// maxBody is the maximum size of a request in bytes, and requestTime limits its time.
const (
	maxBody     = 4 << 20
	requestTime = 30 * time.Second
)

// listen opens the socket for records, such as http:127.0.0.1:8025. Records carry no proof
// of their origin, so only this host may send them.
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
		Handler: receiver(lines), ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: 2 * requestTime, MaxHeaderBytes: 16 << 10,
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

// receiver returns a handler that passes on the records in a request: JSON objects, or an
// array of them. It answers when all records have been read.
func receiver(lines chan<- []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		for _, record := range records {
			select {
			case lines <- record:
			case <-r.Context().Done():
				return
			}
		}
	})
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
