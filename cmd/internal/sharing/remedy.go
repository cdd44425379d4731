package sharing

import (
	"fmt"
	"strings"
)

// remedies lists the remedies of errors by a part of their text. The errors of the server
// have no types, and those of TLS are hidden by the client.
var remedies = []struct{ part, remedy string }{
	{"WRONGPASS", "compare login and password with the users of the server"},
	{"NOAUTH", "add login and password to companion share"},
	{"NOPERM", "give the user of the server the permissions in SEVERAL SERVERS of scanwatch(8)"},
	{"OOM ", "raise maxmemory of the server"},
	{"first record does not look like a TLS handshake", "the port has no TLS; use the port of tls-port, or valkey://"},
	{"certificate signed by unknown authority", "name the file of the authority's certificate with ca"},
	{"cannot validate certificate for", "use a name in the certificate instead of the address"},
	{"certificate is valid for", "use a name in the certificate"},
	{"certificate has expired or is not yet valid", "renew the certificate, or correct the clock"},
}

// remedy adds the remedy to an error, if there is a known one.
func remedy(err error) error {
	if err == nil {
		return nil
	}
	for _, r := range remedies {
		if strings.Contains(err.Error(), r.part) {
			return fmt.Errorf("%w; %s", err, r.remedy)
		}
	}
	return err
}
