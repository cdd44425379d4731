//go:build linux

package smtpd

import (
	"net"
	"time"
)

// Far puts the client at the end of a path on which everything takes rtt from
// here to there and back, in both directions alike. The kernel of a test
// machine may not have netem; the connection itself is opened without delay.
func (c *Client) Far(rtt time.Duration) {
	if rtt == 0 {
		return
	}
	p := &way{Conn: c.conn, half: rtt / 2, sent: make(chan parcel, 1000), come: make(chan parcel, 1000)}
	go p.send()
	go p.receive()
	c.conn = p
	c.r.Reset(p)
}

// A way delays what goes over a connection, and keeps its order.
type way struct {
	net.Conn
	half       time.Duration
	sent, come chan parcel
	rest       parcel
}

// A parcel is data on its way.
type parcel struct {
	due  time.Time
	data []byte
	err  error
}

// send ends when the connection is closed or not written to for the patience
// of a client.
func (p *way) send() {
	idle := time.NewTimer(patience)
	defer idle.Stop()
	for {
		select {
		case one := <-p.sent:
			time.Sleep(time.Until(one.due)) // the way takes its time
			if _, err := p.Conn.Write(one.data); err != nil {
				return
			}
			idle.Reset(patience)
		case <-idle.C:
			return
		}
	}
}

func (p *way) receive() {
	for {
		b := make([]byte, 4096)
		n, err := p.Conn.Read(b)
		p.come <- parcel{time.Now().Add(p.half), b[:n], err}
		if err != nil {
			return
		}
	}
}

func (p *way) Write(b []byte) (int, error) {
	p.sent <- parcel{due: time.Now().Add(p.half), data: append([]byte(nil), b...)}
	return len(b), nil
}

func (p *way) Read(b []byte) (int, error) {
	for len(p.rest.data) == 0 && p.rest.err == nil {
		p.rest = <-p.come
		time.Sleep(time.Until(p.rest.due))
	}
	if len(p.rest.data) == 0 {
		return 0, p.rest.err
	}
	n := copy(b, p.rest.data)
	p.rest.data = p.rest.data[n:]
	return n, nil
}
