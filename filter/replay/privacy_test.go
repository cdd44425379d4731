package replay_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"scanwatch/filter"
	"scanwatch/filter/privacy"
	"scanwatch/filter/smtpd"
	"scanwatch/internal/mailbox"
	"scanwatch/rules"
	"scanwatch/store"
	"scanwatch/tests/simulate"
)

// TestHashed checks that records with hashed mailboxes lead to the same decisions when they are
// replayed. TestHashed replays all streams and a busy day.
func TestHashed(t *testing.T) {
	lists := builtin(t)
	hasher := privacy.New(bytes.Repeat([]byte{7}, 32))
	streams, err := filepath.Glob("../../tests/streams/7.9/*.in")
	if err != nil || len(streams) < 50 {
		t.Fatalf("%d streams, %v", len(streams), err)
	}
	for _, how := range []string{"hashed"} {
		// Subaddresses of a mailbox have different hashes, so the number of distinct mailboxes
		// would differ. Therefore, the delimiter is a character that the addresses of the day do
		// not contain.
		conf := "privacy " + how + "\ndelimiter \"~\"\ntable <local-domains> { \"example.org\" }\n"
		for _, mode := range []rules.Mode{rules.Observe, rules.Enforce} {
			t.Run(how+"/"+mode.String(), func(t *testing.T) {
				p := policy(t, "tight", conf, mode)
				var records []*store.Record
				o := options(t, lists, &records)
				o.Hasher = func() *privacy.Hasher { return hasher }
				records = liveWith(t, o, p, day(1500), &records)
				back, _ := again(t, lists, p, records)
				if n := same(t, records, back, 3); n > 0 {
					t.Errorf("%d of %d sessions differ", n, len(records))
				}
				hashed := 0
				for _, r := range records {
					hashed += strings.Count(known(t, r), mailbox.HashPrefix)
				}
				if hashed < 500 {
					t.Errorf("%d hashes in %d sessions", hashed, len(records))
				}
			})
		}
		for _, name := range streams {
			stream := strings.TrimSuffix(filepath.Base(name), ".in")
			t.Run(how+"/"+stream, func(t *testing.T) {
				in, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				p := policy(t, "tight", conf, rules.Observe)
				var records []*store.Record
				o := options(t, lists, &records)
				o.Hasher = func() *privacy.Hasher { return hasher }
				table := simulate.NewFilter(o)
				table.Use(&filter.Settings{Policy: p})
				if err := smtpd.Serve(bytes.NewReader(in), new(bytes.Buffer), registered{table, smtpd.Requests(filter.Phases(p))}, smtpd.Options{}); err != nil {
					t.Fatal(err)
				}
				table.Stop()
				back, _ := again(t, lists, p, records)
				if stream == "relay-probe" {
					return // the replay does not know the source route, which is part of the hash
				}
				if n := same(t, records, back, 3); n > 0 && lossy[stream] == "" {
					t.Errorf("%d of %d sessions differ", n, len(records))
				}
			})
		}
	}
}
