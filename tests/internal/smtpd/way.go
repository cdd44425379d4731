//go:build linux

package smtpd

import (
	"net"
	"time"
)

// Far delays data by rtt/2 in each direction. It does not delay the start of the connection. It
// does not use netem, which may be missing from a test machine's kernel.
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

// A way delays a connection's data without reordering it.
type way struct {
	net.Conn
	half       time.Duration
	sent, come chan parcel
	rest       parcel
}

// A parcel is a piece of delayed data.
type parcel struct {
	due  time.Time
	data []byte
	err  error
}

// send writes the parcels. It returns when the connection is closed, or when no data was written
// within the time limit of a client.
func (p *way) send() {
	idle := time.NewTimer(patience)
	defer idle.Stop()
	for {
		select {
		case one := <-p.sent:
			time.Sleep(time.Until(one.due)) // the delay
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
