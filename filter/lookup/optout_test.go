package lookup

import (
	"net/mail"
	"net/url"
	"testing"
)

// TestOptOuts checks that each organisation is listed as a scanner. Each contact must have the form
// that its kind requires, and each row must have a source.
func TestOptOuts(t *testing.T) {
	all, err := OptOuts()
	if err != nil {
		t.Fatal(err)
	}
	lists, err := Builtin()
	if err != nil {
		t.Fatal(err)
	}
	orgs := make(map[string]bool)
	for _, r := range lists.Rows() {
		if r.List == Scanners {
			orgs[r.Org] = true
		}
	}
	web := func(s string) bool {
		u, err := url.Parse(s)
		return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
	}
	for org, o := range all {
		if !orgs[org] {
			t.Errorf("%s is not in the list of scanners", org)
		}
		if !web(o.Source) {
			t.Errorf("%s: source %q is not a URL", org, o.Source)
		}
		if o.Kind == OptOutMail {
			if a, err := mail.ParseAddress(o.Contact); err != nil || a.Address != o.Contact {
				t.Errorf("%s: %q is not an address", org, o.Contact)
			}
		} else if !web(o.Contact) {
			t.Errorf("%s: %q is not a URL", org, o.Contact)
		}
	}
	if len(all) < 20 {
		t.Errorf("%d organisations", len(all))
	}
}
