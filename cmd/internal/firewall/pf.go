package firewall

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"scanwatch/rules"
)

// A pf is a pf(4) table. Entries of a pf table never expire, so the keeper must remove
// them.
type pf struct{ table string }

// openPF returns the target for `to pf "table"`.
func openPF(c *rules.Companion) (*target, error) {
	if !plainName(c.Argument, 31) {
		return nil, fmt.Errorf("target pf %q: must be a table, at most 31 letters, digits, underscores, hyphens and dots", c.Argument)
	}
	t := &pf{c.Argument}
	return &target{list: t.list, change: t.change, pause: 200 * time.Millisecond, retry: checkEvery}, nil
}

func (t *pf) pfctl(ctx context.Context, input []byte, words ...string) ([]byte, error) {
	out, err := run(ctx, bytes.NewReader(input), append([]string{"pfctl", "-t", t.table, "-T"}, words...)...)
	switch {
	case says(err, "does not exist"):
		return nil, fmt.Errorf("table %s does not exist; add to pf.conf: table <%[1]s> persist", t.table)
	case says(err, "/dev/pf"):
		return nil, fmt.Errorf("%w; the user needs access to this device, see sync in scanwatch(8)", err)
	}
	return out, err
}

func (t *pf) list(ctx context.Context) (map[netip.Prefix]time.Duration, error) {
	out, err := t.pfctl(ctx, nil, "show")
	if err != nil {
		return nil, err
	}
	content := map[netip.Prefix]time.Duration{}
	for line := range bytes.Lines(out) {
		if p, ok := parsePrefix(strings.TrimSpace(string(line))); ok {
			content[p] = forever
		}
	}
	return content, nil
}

func (t *pf) change(ctx context.Context, remove []netip.Prefix, add []entry) error {
	var b bytes.Buffer
	for _, p := range remove {
		fmt.Fprintln(&b, address(p))
	}
	if b.Len() > 0 {
		if _, err := t.pfctl(ctx, b.Bytes(), "delete", "-f", "-"); err != nil {
			return err
		}
	}
	b.Reset()
	for _, e := range add {
		fmt.Fprintln(&b, address(e.prefix))
	}
	if b.Len() == 0 {
		return nil
	}
	_, err := t.pfctl(ctx, b.Bytes(), "add", "-f", "-")
	return err
}
