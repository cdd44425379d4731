//go:build linux

package smtpd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// Directories inside the server's root.
const (
	rootDir  = "/srv/e2e"
	StateDir = rootDir + "/state" // the filter's state, as the filter sees it
	binDir   = rootDir + "/bin"   // programs of all filters
)

// Ports of the servers.
const (
	PortMX         = 12525
	PortSubmission = 12587 // STARTTLS and AUTH required; TLS versions only
	PortSMTPS      = 12465 // same as PortSubmission, with TLS from the first byte
)

// A Filter is a filter in the chain.
type Filter struct {
	Name string   // name in smtpd.conf and the log; by default, the program's name
	Path string   // static program on this machine, which the server copies
	Args []string // must not contain quotes, backslashes or line ends

	// Also lists other programs that the filter runs. [Program] returns their paths.
	Also []string

	// Builtin is the definition of a filter built into smtpd (`phase connect match ...`),
	// which has no program.
	Builtin string
}

func (f Filter) name() string {
	if f.Name != "" {
		return f.Name
	}
	return filepath.Base(f.Path)
}

// Program returns the path of a filter's program inside the root.
func Program(file string) string { return path.Join(binDir, filepath.Base(file)) }

// Through inserts teefilter (see tests/teefilter) between smtpd and f. teefilter registers for f's
// phases and for the given phases. If tee is a path inside the root, such as [StateDir], teefilter
// copies both streams there.
func Through(teefilter string, f Filter, tee string, phases ...string) Filter {
	args := []string{"-phases", strings.Join(phases, ",")}
	if tee != "" {
		args = append(args, "-tee", tee)
	}
	return Filter{
		Name: f.name(),
		Path: teefilter,
		Args: append(append(args, Program(f.Path)), f.Args...),
		Also: append([]string{f.Path}, f.Also...),
	}
}

// definition returns the line in smtpd.conf that defines the filter. smtpd passes the
// command to a shell.
func (f Filter) definition() (string, error) {
	if f.Builtin != "" {
		return fmt.Sprintf("filter %q %s\n", f.name(), f.Builtin), nil
	}
	command := Program(f.Path)
	for _, arg := range f.Args {
		if strings.ContainsAny(arg, "'\"\\\n") {
			return "", fmt.Errorf("filter %s: argument %q needs more quoting than smtpd.conf can do", f.name(), arg)
		}
		command += " '" + arg + "'"
	}
	return fmt.Sprintf("filter %q proc-exec \"%s\"\n", f.name(), command), nil
}

// config returns smtpd.conf, with its statements in the order that smtpd requires.
func (o Options) config() (string, error) {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	if o.Version.TLS {
		line("pki server cert %q", rootDir+"/tls/cert.pem")
		line("pki server key %q", rootDir+"/tls/key.pem")
	}
	line("table users file:%s/users", rootDir)
	line("table credentials file:%s/credentials", rootDir)
	line("smtp limit max-rcpt 1000")
	if o.Prelude != "" {
		line("%s", o.Prelude)
	}

	var names []string
	for _, f := range o.Filters {
		def, err := f.definition()
		if err != nil {
			return "", err
		}
		b.WriteString(def)
		names = append(names, fmt.Sprintf("%q", f.name()))
	}
	filter := ""
	switch len(names) {
	case 0:
	case 1:
		filter = " filter " + names[0]
	default:
		line("filter chained chain { %s }", strings.Join(names, ", "))
		filter = " filter chained"
	}

	addrs := []string{"127.0.0.1", "::1", Addr4, Addr6}
	if o.Wildcard {
		addrs = []string{"0.0.0.0", "::"}
	}
	for _, addr := range addrs {
		if !o.Version.TLS {
			line("listen on %s port %d%s", addr, PortMX, filter)
			continue
		}
		line("listen on %s port %d tls pki server%s", addr, PortMX, filter)
		line("listen on %s port %d tls-require pki server auth <credentials>%s", addr, PortSubmission, filter)
		line("listen on %s port %d smtps pki server auth <credentials>%s", addr, PortSMTPS, filter)
	}
	if o.Socket {
		line("listen on socket%s", filter)
	}

	line("action inbound maildir %q virtual <users>", rootDir+"/mail")
	if o.Relay != "" {
		line("action outbound relay host %q", o.Relay)
		line("match from local for domain %q action outbound", RelayDomain)
		line("match from any auth for domain %q action outbound", RelayDomain)
	}
	line("match from any for domain %q action inbound", Domain)
	return b.String(), nil
}

// ports returns the ports on which servers of this version listen.
func (v Version) ports() []int {
	if v.TLS {
		return []int{PortMX, PortSubmission, PortSMTPS}
	}
	return []int{PortMX}
}

// certificate returns a self-signed certificate for HostName and its key, both in PEM
// format.
func certificate() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: HostName},
		DNSNames:              []string{HostName},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
