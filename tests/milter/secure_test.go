//go:build linux

package milter

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/smtp"
	"os"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/cli"
)

// certificate writes a certificate for mx.example.org and its key to one file.
func (s *site) certificate(name string) string {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mx.example.org"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		s.t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(s.path(name), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.path(name)
}

// authenticate answers Postfix as dovecot would. The only user is joe with the
// password "right".
func (s *site) authenticate(path string) {
	s.t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, "VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t00000000000000000000000000000001\nDONE\n")
				for in := bufio.NewScanner(c); in.Scan(); {
					f := strings.Split(in.Text(), "\t")
					_, response, _ := strings.Cut(in.Text(), "resp=")
					text, _ := base64.StdEncoding.DecodeString(response)
					names := append(strings.Split(string(text), "\x00"), "", "") // of the identity, the user, and the password
					switch {
					case f[0] != "AUTH":
					case names[1] == "joe" && names[2] == "right":
						fmt.Fprintf(c, "OK\t%s\tuser=joe\n", f[1])
					default:
						fmt.Fprintf(c, "FAIL\t%s\tuser=%s\n", f[1], names[1])
					}
				}
			}()
		}
	}()
}

// submit starts TLS. If password is not empty, submit logs in as joe and sends a message to another
// domain.
func submit(t *testing.T, src, password string) error {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(src)}}
	conn, err := d.DialContext(t.Context(), "tcp", server)
	if err != nil {
		return err
	}
	c, err := smtp.NewClient(conn, "mx.example.org")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Hello("laptop.example.net"); err != nil {
		return err
	}
	if err := c.StartTLS(&tls.Config{InsecureSkipVerify: true}); err != nil {
		return err
	}
	to := "games@example.org"
	if password != "" {
		to = "friend@far.example"
		if err := c.Auth(smtp.PlainAuth("", "joe", password, "mx.example.org")); err != nil {
			return err
		}
	}
	if err := c.Mail("joe@example.org"); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	_, _ = io.WriteString(w, "Subject: x\r\n\r\nx\r\n")
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// TestSecure checks sessions with STARTTLS, and sessions with a login.
func TestSecure(t *testing.T) {
	const alone, right, wrong = "198.51.100.40", "198.51.100.41", "198.51.100.42"
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.startMilter(conf(t, "standard", "enforce"))
			certificate := s.certificate("tls.pem")
			var extra string
			switch name {
			case "Postfix":
				s.authenticate(s.path("auth"))
				extra = fmt.Sprintf("smtpd_tls_security_level = may\nsmtpd_tls_chain_files = %s\nsmtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = %s\n"+
					"smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination\n", certificate, s.path("auth"))
			case "Sendmail":
				extra = fmt.Sprintf("define(`confCACERT', `%[1]s')dnl\ndefine(`confCACERT_PATH', `/etc/ssl/certs')dnl\ndefine(`confSERVER_CERT', `%[1]s')dnl\ndefine(`confSERVER_KEY', `%[1]s')dnl\n", certificate)
			}
			start(s, s.recipe(name)+extra)
			if err := submit(t, alone, ""); err != nil {
				t.Error(err)
			}
			if name == "Postfix" {
				if err := submit(t, right, "right"); err != nil {
					t.Error(err)
				}
				if err := submit(t, wrong, "wrong"); err == nil || !strings.Contains(err.Error(), "535") {
					t.Errorf("the wrong password: %v", err)
				}
			}
			s.idle()
			s.stopMilter()
			want := map[string]string{alone: "1 message, 2 greetings, 1 handshake, users []"}
			if name == "Postfix" {
				want[right] = "1 message, 2 greetings, 1 handshake, users [joe]"
				want[wrong] = "0 message, 2 greetings, 1 handshake, users []" // Postfix does not report failed logins to a milter
			}
			for line := range strings.Lines(cli.Run(t, s.path("state"), "dump")) {
				var r struct {
					record
					Helo, TLS []any
					Auth      []struct{ User string }
				}
				cli.Decode(t, line, &r)
				users := make([]string, 0)
				for _, a := range r.Auth {
					users = append(users, a.User)
				}
				got := fmt.Sprintf("%d message, %d greetings, %d handshake, users %v", r.Counts["messages"], len(r.Helo), len(r.TLS), users)
				if w, ok := want[r.Src]; ok && got != w {
					t.Errorf("%s: %s, want %s", r.Src, got, w)
				}
				delete(want, r.Src)
			}
			if len(want) > 0 {
				t.Errorf("no record of %v", want)
			}
		})
	}
}
