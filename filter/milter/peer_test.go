//go:build amd64 || arm64

// go-milter does not build on 32-bit systems.

package milter

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	peer "github.com/d--j/go-milter"

	"scanwatch/internal/smtp"
)

// A waiter is a recorder that signals the end of the session.
type waiter struct {
	*recorder
	ended chan struct{}
}

func (w waiter) Event(e *smtp.Event) {
	w.recorder.Event(e)
	if e.Kind == smtp.EventDisconnect {
		close(w.ended)
	}
}

// TestPeer checks the milter with another implementation of the mail server's side of the protocol.
// TestPeer uses a Unix socket and TCP.
func TestPeer(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "milter.sock")
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			r := waiter{ended: make(chan struct{}), recorder: &recorder{answers: map[smtp.Phase][]smtp.Answer{
				smtp.PhaseRcptTo: {{}, {Decision: smtp.Reject, Text: "450 4.7.1 Too many 100% unknown"}, {}},
			}}}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			s := &Server{Sink: r, Log: slog.New(slog.DiscardHandler)}
			go func() { done <- s.Serve(ctx, l) }()
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			playPeer(t, peer.NewClient(network, l.Addr().String()))
			<-r.ended
			got := strings.Join(r.lines, "\n")
			for _, want := range []string{
				"site mx.example.org", `connect 198.51.100.1:40000 > 192.0.2.25:25 local false "mail.partner.example" pass`,
				`ask rcpt-to name "" addr "games@example.org"`, `addr "left@example.org" text "" code 550`, "disconnect closed",
			} {
				if !strings.Contains(got, want) {
					t.Errorf("no %s in\n%s", want, got)
				}
			}
		})
	}
}

// playPeer sends three recipients, of which the milter accepts the second, and a message.
func playPeer(t *testing.T, c *peer.Client) {
	t.Helper()
	macros := peer.NewMacroBag()
	for name, value := range map[peer.MacroName]string{
		peer.MacroMTAFQDN: "mx.example.org", peer.MacroDaemonAddr: "192.0.2.25", peer.MacroDaemonPort: "25",
		peer.MacroClientPTR: "mail.partner.example", peer.MacroName("{client_resolve}"): "OK",
	} {
		macros.Set(name, value)
	}
	s, err := c.Session(macros)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.ProtocolOption(peer.OptRcptRej) || !s.ProtocolOption(peer.OptNoBody) || s.ActionOption(peer.OptAddHeader) {
		t.Error("the negotiation has another result")
	}
	step := func(want peer.ActionType, a *peer.Action, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if a.Type != want || want == peer.ActionRejectWithCode && a.SMTPReply != "450 4.7.1 Too many 100? unknown" {
			t.Errorf("the answer is %v %q", a, a.SMTPReply)
		}
	}
	a, err := s.Conn("mail.partner.example", peer.FamilyInet, 40000, "198.51.100.1")
	step(peer.ActionContinue, a, err)
	a, err = s.Helo("mail.partner.example")
	step(peer.ActionContinue, a, err)
	a, err = s.Mail("a@partner.example", "SIZE=100")
	step(peer.ActionContinue, a, err)
	a, err = s.Rcpt("games@example.org", "")
	step(peer.ActionContinue, a, err)
	a, err = s.Rcpt("other@example.org", "")
	step(peer.ActionRejectWithCode, a, err)
	macros.Set(peer.MacroRcptMailer, "error")
	macros.Set(peer.MacroRcptHost, "5.1.1")
	macros.Set(peer.MacroRcptAddr, "User unknown")
	a, err = s.Rcpt("left@example.org", "")
	step(peer.ActionContinue, a, err)
	a, err = s.Unknown("XYZZY", nil)
	step(peer.ActionContinue, a, err)
	a, err = s.DataStart()
	step(peer.ActionContinue, a, err)
	a, err = s.HeaderEnd() // nothing is sent, because the milter has not requested headers
	step(peer.ActionContinue, a, err)
	if _, a, err = s.BodyReadFrom(strings.NewReader("")); err != nil || a.Type != peer.ActionContinue && a.Type != peer.ActionAccept {
		t.Errorf("%v, %v", a, err)
	}
}
