package sharing

import (
	"fmt"
	"strings"
)

// remedies maps parts of error messages to remedies. The texts are compared because the server's
// errors have no types, and the client library hides the types of TLS errors.
var remedies = []struct{ part, remedy string }{
	{"WRONGPASS", "compare login and password with the server's users"},
	{"NOAUTH", "add login and password to companion share"},
	{"NOPERM", "give the server's user the permissions in SEVERAL SERVERS of scanwatch(8)"},
	{"connection refused", "start the server, or correct the address in companion share"},
	{"connect: no such file or directory", "start the server, or correct the socket in companion share"},
	{"no such host", "correct the name in companion share"},
	{"i/o timeout", "check the address in companion share, and the firewall of the server"},
	{"OOM ", "raise maxmemory of the server"},
	{"first record does not look like a TLS handshake", "the port has no TLS; use the port of tls-port, or valkey://"},
	{"certificate signed by unknown authority", "name the file of the authority's certificate with ca"},
	{"cannot validate certificate for", "use a name in the certificate instead of the address"},
	{"certificate is valid for", "use a name in the certificate"},
	{"certificate has expired or is not yet valid", "renew the certificate, or correct the clock"},
}

// remedy adds a remedy to an error if one is known.
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
