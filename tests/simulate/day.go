package simulate

// This file generates a busy day on a legitimate server. All clients are legitimate, but
// many look suspicious.

import (
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Midnight is the start of Day.
var Midnight = time.Date(2026, 11, 16, 0, 0, 0, 0, time.UTC)

// cast lists the kinds of clients. The number is the kind's sessions per thousand. If it is 0, the
// kind has a fixed number of sessions.
var cast = []struct {
	label string
	share int
	play  func(d *day, n int)
}{
	{"delivery", 372, (*day).delivery},            // ordinary mail servers
	{"pool", 200, (*day).pool},                    // a big provider with many hosts
	{"submission", 90, (*day).users},              // local users, who sometimes mistype passwords
	{"nat-office", 0, (*day).office},              // 25 users with one address and one old password
	{"retry", 50, (*day).retry},                   // the first attempt is deferred, the next is from another address
	{"forward", 40, (*day).forward},               // hosts that forward their users' mail
	{"bad-helo", 40, (*day).badHelo},              // legitimate, but misconfigured
	{"bounce", 35, (*day).bounce},                 // mail from the null sender
	{"backscatter", 20, (*day).backscatter},       // bounces of mail whose local sender was forged
	{"no-rdns", 25, (*day).noRDNS},                // legitimate, but without a name in DNS
	{"printer", 25, (*day).printers},              // devices on the local network
	{"callout", 20, (*day).callout},               // checks whether a local sender exists
	{"early-quit", 15, (*day).earlyQuit},          // disconnects early
	{"newsletter", 8, (*day).newsletter},          // mail to many mailboxes, some of which no longer exist
	{"list", 8, (*day).list},                      // a mailing list with mistyped addresses
	{"payment", 4, (*day).payment},                // a message each month from a rented host
	{"former-employee", 0, (*day).formerEmployee}, // forty newsletters to a former mailbox
	{"monitor", 0, (*day).monitor},                // checks the server every five minutes
	{"big-burst", 0, (*day).burst},                // thirty concurrent connections
}

// Labels returns the labels of the sessions in Day.
func Labels() (labels []string) {
	for _, c := range cast {
		labels = append(labels, c.label)
	}
	return labels
}

// Day returns the sessions of a day that starts at Midnight, ordered by time. There are about n
// sessions, and about 2,000 more of the kinds with a fixed number. The same seed always produces
// the same sessions.
func Day(seed uint64, n int) iter.Seq[Session] {
	d := &day{Rand: rand.New(rand.NewPCG(seed, 1))}
	for _, c := range cast {
		d.label = c.label
		c.play(d, n*c.share/1000)
	}
	slices.SortStableFunc(d.sessions, func(a, b Session) int { return a.Start.Compare(b.Start) })
	return slices.Values(d.sessions)
}

// Merge merges two sequences, each ordered by Start.
func Merge(a, b iter.Seq[Session]) iter.Seq[Session] {
	return func(yield func(Session) bool) {
		next, stop := iter.Pull(b)
		defer stop()
		y, more := next()
		for x := range a {
			for ; more && y.Start.Before(x.Start); y, more = next() {
				if !yield(y) {
					return
				}
			}
			if !yield(x) {
				return
			}
		}
		for ; more; y, more = next() {
			if !yield(y) {
				return
			}
		}
	}
}

// A day is a day being generated.
type day struct {
	*rand.Rand
	sessions []Session
	label    string
	nets     int // /24s in use
	nets6    int
	firms    int
	servers  []host // used by the kind delivery and others
}

// A host is a source of sessions.
type host struct {
	addr   netip.Addr
	rdns   string
	fcrdns string
	helo   string
	domain string        // domain of the senders
	rtt    time.Duration // time for a command and its reply
	tls    bool
	words  Kind // Ehlo or Helo
}

// The networks are from RFC 2544, because the documentation networks are too small. The
// day uses the lower half, and attacks use the upper half.
const (
	dayNets    = 256
	attackNets = 256
)

// net returns the addresses of an unused /24.
func (d *day) net() func(host int) netip.Addr {
	n := d.nets
	if n >= dayNets {
		panic("simulate: no networks left")
	}
	d.nets++
	return func(host int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(n), byte(host)}) }
}

// addr6 returns an address in an unused /48.
func (d *day) addr6() netip.Addr {
	d.nets6++
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, byte(d.nets6 >> 8), byte(d.nets6), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x25})
}

// hosts returns the servers of n companies, with the given number of neighbours in each
// /24.
func (d *day) hosts(n, neighbours int) []host {
	hosts := make([]host, 0, n)
	var at func(int) netip.Addr
	for i := range n {
		if i%neighbours == 0 {
			at = d.net()
		}
		hosts = append(hosts, d.firm(at(10+i%neighbours)))
	}
	return hosts
}

// firm returns a company's mail server.
func (d *day) firm(addr netip.Addr) host {
	d.firms++
	domain := fmt.Sprintf("%s-%d.example", pick(d, trades), d.firms)
	name := pick(d, mailNames) + "." + domain
	h := host{addr: addr, rdns: name, fcrdns: "pass", helo: name, domain: domain, rtt: d.between(8*time.Millisecond, 180*time.Millisecond), tls: d.chance(90), words: Ehlo}
	if d.chance(20) { // several names for the same host
		h.helo = "smtp-out." + domain
	}
	return h
}

var (
	trades    = []string{"bakery", "optics", "freight", "tiles", "clinic", "school", "choir", "garden", "cycles", "press", "notary", "harbour"}
	mailNames = []string{"mail", "mx1", "smtp", "mx-out", "mail2", "out7", "mta-03"}
	firsts    = []string{"alice", "ben", "carla", "dora", "emil", "frida", "georg", "hanna", "ivan", "jana", "karl", "lena", "max", "nora", "oskar", "petra", "quinn", "rosa", "sven", "tilda"}
	lasts     = []string{"adler", "becker", "conrad", "dorn", "ehlers", "frank", "graf", "hahn", "iversen", "jung", "keller", "lang", "maurer", "nagel", "otto"}
	roles     = []string{"postmaster", "abuse", "info", "office"}
)

// Mailboxes is the number of local mailboxes.
const Mailboxes = 300

// Mailbox returns a local mailbox.
func Mailbox(i int) string {
	i %= Mailboxes
	if i < len(roles) {
		return roles[i] + "@" + Domain
	}
	return firsts[i%len(firsts)] + "." + lasts[i/len(firsts)] + "@" + Domain
}

// Exists reports whether a local part is a mailbox.
func Exists(local string) bool {
	first, last, named := strings.Cut(local, ".")
	if !named {
		return slices.Contains(roles, local)
	}
	i := slices.Index(lasts, last)*len(firsts) + slices.Index(firsts, first)
	return slices.Contains(firsts, first) && slices.Contains(lasts, last) && i >= len(roles)
}

// mailbox returns a random mailbox.
func (d *day) mailbox() string { return Mailbox(d.IntN(Mailboxes)) }

// typo returns a mailbox name in which two letters are swapped.
func (d *day) typo() string {
	b := []byte(Mailbox(len(roles) + d.IntN(Mailboxes-len(roles))))
	b[1], b[2] = b[2], b[1]
	if b[1] == b[2] { // a name such as emma
		b[1] = 'x'
	}
	return string(b)
}

// left returns the address of a former user.
func left(i int) string {
	return fmt.Sprintf("%s.%s%d@%s", firsts[i%len(firsts)], lasts[i*7%len(lasts)], i, Domain)
}

// known returns n servers. The given percentage of these servers also sends mail on the simulated
// day.
func (d *day) known(n, percent int) []host {
	hosts := d.hosts(n*(100-percent)/100, 3)
	for len(hosts) < n {
		hosts = append(hosts, pick(d, d.servers))
	}
	return hosts
}

func pick[T any](d *day, of []T) T { return of[d.IntN(len(of))] }

// chance returns true with the given probability in percent.
func (d *day) chance(percent int) bool { return d.IntN(100) < percent }

// upTo returns a random duration below most.
func (d *day) upTo(most time.Duration) time.Duration { return upTo(d.Rand, most) }

func upTo(r *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(most)))
}

func (d *day) between(least, most time.Duration) time.Duration {
	return least + d.upTo(most-least)
}

// when returns a random time of day. Afternoons are four times as busy as nights.
func (d *day) when() time.Time {
	for {
		at := d.upTo(24 * time.Hour)
		rate := 1 + 0.6*math.Cos((at.Hours()-14)/12*math.Pi)
		if d.Float64()*1.6 < rate {
			return Midnight.Add(at)
		}
	}
}

// A script is a session being generated.
type script struct {
	d   *day
	h   *host
	out *Session
}

// session starts a script. All later steps belong to this script until the next script starts.
func (d *day) session(h *host, at time.Time, port uint16) script {
	d.sessions = append(d.sessions, Session{
		Label: d.label, Start: at,
		Src: netip.AddrPortFrom(h.addr, uint16(1024+d.IntN(60_000))),
		Dst: serverAddr(h.addr, port), RDNS: h.rdns, FCrDNS: h.fcrdns,
	})
	return script{d, h, &d.sessions[len(d.sessions)-1]}
}

// serverAddr returns the local address that a client at a connects to.
func serverAddr(a netip.Addr, port uint16) netip.AddrPort {
	if a.Is4() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 25}), port)
	}
	return netip.MustParseAddrPort(fmt.Sprintf("[2001:db8:ffff::25]:%d", port))
}

// add appends a step that immediately follows the previous reply.
func (s script) add(kind Kind, text string) script {
	return s.fated(kind, text, OK)
}

func (s script) fated(kind Kind, text string, fate Fate) script {
	gap := s.h.rtt + s.d.upTo(s.h.rtt/4+time.Millisecond)
	s.out.Steps = append(s.out.Steps, Step{Kind: kind, Gap: gap, Text: text, Fate: fate})
	return s
}

// later delays the last step.
func (s script) later(d time.Duration) script {
	s.out.Steps[len(s.out.Steps)-1].Gap += d
	return s
}

func (s script) greet() script {
	s.add(s.h.words, s.h.helo)
	if s.h.tls && s.h.words == Ehlo {
		s.add(StartTLS, "")
	}
	return s
}

// message sends a message. The recipients in unknown do not exist, and are requested before the
// recipients in to.
func (s script) message(sender string, unknown []string, to ...string) script {
	s.add(Mail, sender)
	for _, r := range unknown {
		s.fated(Rcpt, r, Unknown)
	}
	for _, r := range to {
		s.add(Rcpt, r)
	}
	return s.data()
}

func (s script) data() script {
	s.add(Data, "")
	size := int(1500 * math.Exp(s.d.ExpFloat64()*1.5)) // most are small
	s.out.Steps[len(s.out.Steps)-1].Size = min(size, 30<<20)
	return s
}

// sender returns a sender address that belongs to h.
func (d *day) sender(h *host) string {
	return pick(d, firsts) + "@" + h.domain
}

// some returns n distinct recipients. If there are not enough mailboxes, some recipients are
// subaddresses.
func (d *day) some(n int) (to []string) {
	for i, m := range d.Perm(Mailboxes) {
		if i < n {
			to = append(to, Mailbox(m))
		}
	}
	for i := len(to); i < n; i++ {
		local, domain, _ := strings.Cut(to[i-Mailboxes], "@")
		to = append(to, local+"+news@"+domain)
	}
	return to
}

// mail generates an ordinary session, with up to four messages to up to three recipients
// each.
func (d *day) mail(h *host, at time.Time, sender func() string) {
	s := d.session(h, at, 25).greet()
	for range 1 + min(d.IntN(10)/6*(1+d.IntN(3)), 3) {
		var unknown []string
		if d.chance(2) {
			unknown = []string{d.typo()}
		}
		s.message(sender(), unknown, d.some(1+d.IntN(5)/3*(1+d.IntN(2)))...)
	}
	s.add(Quit, "")
}

func (d *day) delivery(n int) {
	hosts := d.hosts(1200, 30)
	for range max(n/60, 20) { // some of the servers use IPv6
		hosts = append(hosts, d.firm(d.addr6()))
	}
	d.servers = hosts
	for range n {
		h := pick(d, hosts)
		d.mail(&h, d.when(), func() string { return d.sender(&h) })
	}
}

// provider returns the hosts of a large provider. The hosts are in several networks, and share a
// domain.
func (d *day) provider(domain string, nets, each int) (hosts []host) {
	for n := range nets {
		at := d.net()
		for i := range each {
			name := fmt.Sprintf("mail-%c%c%d.%s", 'a'+n, 'a'+i%26, i, domain)
			hosts = append(hosts, host{addr: at(20 + i), rdns: name, fcrdns: "pass", helo: name, domain: domain, rtt: d.between(10*time.Millisecond, 60*time.Millisecond), tls: true, words: Ehlo})
		}
	}
	return hosts
}

func (d *day) pool(n int) {
	hosts := append(d.provider("example.com", 6, 60), d.provider("example.net", 4, 30)...)
	for range n {
		h := pick(d, hosts)
		d.mail(&h, d.when(), func() string { return fmt.Sprintf("%s%d@%s", pick(d, firsts), d.IntN(4000), h.domain) })
	}
}

func (d *day) newsletter(n int) {
	hosts := d.hosts(6, 1)
	for i := range n {
		h := hosts[i%len(hosts)]
		to := d.some(50 + d.IntN(450))
		gone := 1 + d.IntN(6) // percentage of former mailboxes
		s := d.session(&h, d.when(), 25).greet()
		for batch := range slices.Chunk(to, 50) {
			s.add(Mail, fmt.Sprintf("bounce-%d@%s", d.IntN(1_000_000), h.domain))
			for _, r := range batch {
				if d.chance(gone) {
					s.fated(Rcpt, left(d.IntN(60)), Unknown)
				} else {
					s.add(Rcpt, r)
				}
			}
			s.data()
		}
		s.add(Quit, "")
	}
}

func (d *day) list(n int) {
	hosts := d.hosts(4, 1)
	for i := range n {
		h := hosts[i%len(hosts)]
		s := d.session(&h, d.when(), 25).greet()
		s.message("friends-bounces@"+h.domain, []string{d.typo(), d.typo(), d.typo()}, d.some(48)...)
		s.add(Quit, "")
	}
}

func (d *day) bounce(n int) {
	hosts := d.known(200, 90)
	for range n {
		h := pick(d, hosts)
		s := d.session(&h, d.when(), 25).greet()
		if d.chance(35) {
			s.message("", []string{left(d.IntN(60))})
		} else {
			s.message("", nil, d.mailbox())
		}
		s.add(Quit, "")
	}
}

// backscatter generates bounces of spam that used invented local addresses as senders.
func (d *day) backscatter(n int) {
	hosts := d.known(40, 100)
	hosts = append(hosts, d.hosts(100, 1)...)
	begin := Midnight.Add(9 * time.Hour)
	for range n {
		h := pick(d, hosts)
		s := d.session(&h, begin.Add(d.upTo(5*time.Hour)), 25).greet()
		for range 1 + d.IntN(3) {
			s.message("", []string{fmt.Sprintf("%s%02d@%s", pick(d, firsts), d.IntN(2), Domain)})
		}
		s.add(Quit, "")
	}
}

func (d *day) forward(n int) {
	hosts := d.hosts(12, 2)
	for i := range hosts {
		hosts[i].helo = "forward." + hosts[i].domain
	}
	shouts := []string{"winner", "offer", "noreply-promo", "best-price", "account-alert"}
	for range n {
		h := pick(d, hosts)
		d.mail(&h, d.when(), func() string { return fmt.Sprintf("%s@deals-%d.example", pick(d, shouts), d.IntN(500)) })
	}
}

func (d *day) retry(n int) {
	hosts := d.provider("example.org", 3, 40)
	nets := len(hosts) / 40
	for range n / 4 {
		net, at, sender, to := d.IntN(nets), d.when(), fmt.Sprintf("%s%d@example.org", pick(d, firsts), d.IntN(4000)), d.mailbox()
		for i, wait := range []time.Duration{0, 5 * time.Minute, 15 * time.Minute, 45 * time.Minute} {
			h := hosts[net*40+d.IntN(40)]
			s := d.session(&h, at.Add(wait), 25).greet().add(Mail, sender)
			if i < 3 {
				s.fated(Rcpt, to, Later)
			} else {
				s.add(Rcpt, to).data()
			}
			s.add(Quit, "")
		}
	}
}

// payment generates one notification from each of many senders. Their hosts are rented, and their
// names in DNS are derived by the cloud provider.
func (d *day) payment(n int) {
	net, used := d.net(), 0
	for i := range n {
		if used++; used == 250 {
			net, used = d.net(), 1
		}
		h := d.firm(net(used))
		b := h.addr.As4()
		if i%2 == 0 {
			h.rdns = fmt.Sprintf("ec2-%d-%d-%d-%d.eu-west-1.compute.amazonaws.com", b[0], b[1], b[2], b[3])
		} else {
			h.rdns = fmt.Sprintf("%d.%d.%d.%d.bc.googleusercontent.com", b[3], b[2], b[1], b[0])
		}
		s := d.session(&h, d.when(), 25).greet()
		s.message("billing@"+h.domain, nil, d.mailbox()).add(Quit, "")
	}
}

func (d *day) badHelo(n int) {
	hosts := d.hosts(100, 10)
	for i := range hosts {
		h := &hosts[i]
		switch i % 6 {
		case 0:
			h.helo = "localhost"
		case 1:
			h.helo = "localhost.localdomain"
		case 2:
			h.helo = fmt.Sprintf("MAILSRV%d", i)
		case 3:
			h.helo = h.addr.String()
		case 4:
			h.fcrdns = "fail" // the name still belongs to the old address
		case 5:
			h.helo, h.words = "exchange.local", Helo
		}
	}
	for range n {
		h := pick(d, hosts)
		d.mail(&h, d.when(), func() string { return d.sender(&h) })
	}
}

func (d *day) noRDNS(n int) {
	hosts := d.hosts(60, 10)
	for range n {
		h := pick(d, hosts)
		h.rdns, h.fcrdns = "", "fail"
		d.mail(&h, d.when(), func() string { return d.sender(&h) })
	}
}

func (d *day) printers(n int) {
	names := []string{"printer", "KM8F21A3", "scanner-2nd-floor", "NPI4D2C11", "copier.local", "10.20.0.7"}
	for range n {
		i := d.IntN(len(names))
		h := host{addr: netip.AddrFrom4([4]byte{10, 20, 0, byte(2 + i)}), fcrdns: "fail", helo: names[i], domain: Domain, rtt: 2 * time.Millisecond, words: Helo}
		s := d.session(&h, d.when(), 25).greet()
		s.message("scan@"+Domain, nil, d.mailbox()).add(Quit, "")
	}
}

func (d *day) callout(n int) {
	hosts := d.known(40, 60)
	for range n {
		h := pick(d, hosts)
		s := d.session(&h, d.when(), 25).greet().add(Mail, "")
		if d.chance(25) {
			s.fated(Rcpt, d.typo(), Unknown)
		} else {
			s.add(Rcpt, d.mailbox())
		}
		s.add(Quit, "")
	}
}

func (d *day) earlyQuit(n int) {
	hosts := d.known(80, 80)
	for range n {
		h := pick(d, hosts)
		s := d.session(&h, d.when(), 25)
		switch d.IntN(4) {
		case 0:
			s.add(Drop, "")
		case 1:
			s.add(Quit, "")
		case 2:
			s.greet().add(Quit, "")
		case 3:
			s.greet().add(Mail, d.sender(&h)).add(Rset, "").add(Noop, "").add(Quit, "")
		}
	}
}

func (d *day) monitor(int) {
	h := d.firm(d.net()(10))
	h.rdns = "probe." + h.domain
	h.helo, h.tls = h.rdns, false
	for at := time.Duration(0); at < 24*time.Hour; at += 5 * time.Minute {
		d.session(&h, Midnight.Add(at), 25).greet().add(Quit, "")
	}
}

// burst generates a provider that sends a hundred messages four times a day, over thirty
// connections from one address.
func (d *day) burst(int) {
	h := d.firm(d.net()(10))
	for range 4 {
		at := d.when()
		for range 30 {
			s := d.session(&h, at.Add(d.upTo(300*time.Millisecond)), 25).greet()
			for range 3 {
				s.message(d.sender(&h), nil, d.mailbox())
			}
			s.add(Quit, "").later(time.Second)
		}
	}
}

// formerEmployee generates mail from forty mailing lists to a mailbox that no longer
// exists.
func (d *day) formerEmployee(int) {
	for range 40 {
		h := d.firm(d.net()(10))
		for range 1 + d.IntN(2) {
			s := d.session(&h, d.when(), 25).greet()
			s.message("news@"+h.domain, []string{left(0)}).add(Quit, "")
		}
	}
}

// laptop returns a user's computer. Its network never sends mail to the server, so the address has
// no standing before the login.
func (d *day) laptop(addr netip.Addr) host {
	b := addr.As4()
	name := fmt.Sprintf("p%d-%d-%d-%d.access.example", b[0], b[1], b[2], b[3])
	names := []string{fmt.Sprintf("LAPTOP-%06X", d.IntN(1<<24)), fmt.Sprintf("[192.168.%d.%d]", d.IntN(3), 2+d.IntN(200)), pick(d, firsts) + "s-iphone", "DESKTOP.fritz.box", "localhost"}
	return host{addr: addr, rdns: name, fcrdns: "pass", helo: pick(d, names), domain: Domain, rtt: d.between(15*time.Millisecond, 90*time.Millisecond), tls: true, words: Ehlo}
}

// login generates a session of a user who mistypes the password a few times. If right is set, the
// user eventually logs in and sends a message. Otherwise the user gives up.
func (d *day) login(h *host, at time.Time, user string, wrong int, right bool) {
	s := d.session(h, at, 587).greet()
	for i := range wrong {
		s.fated(Auth, user, Unknown)
		if i > 0 {
			s.later(d.between(3*time.Second, 12*time.Second))
		}
	}
	if !right {
		s.add(Quit, "")
		return
	}
	s.add(Auth, user)
	if wrong > 0 {
		s.later(d.between(3*time.Second, 12*time.Second))
	}
	for range 1 + d.IntN(2) {
		to := fmt.Sprintf("%s@%s-%d.example", pick(d, firsts), pick(d, trades), d.IntN(900))
		if d.chance(30) {
			to = d.mailbox()
		}
		s.message(user+"@"+Domain, nil, to)
	}
	s.add(Quit, "")
}

// user returns the login name for mailbox i.
func user(i int) string {
	local, _, _ := strings.Cut(Mailbox(len(roles)+i%(Mailboxes-len(roles))), "@")
	return local
}

func (d *day) users(n int) {
	// Addresses on dial-up networks change every day.
	nets := []func(int) netip.Addr{d.net(), d.net(), d.net()}
	type seat struct {
		h    host
		user string
	}
	var seats []seat
	for i := range 200 {
		seats = append(seats, seat{d.laptop(nets[i%len(nets)](2 + i/len(nets)*3)), user(i)})
	}
	for range n {
		s := pick(d, seats)
		wrong := 0
		if d.chance(6) {
			wrong = 1 + d.IntN(2)
		}
		d.login(&s.h, d.when(), s.user, wrong, true)
	}
}

// office generates 25 users who share an address and log in during the whole day. At night, before
// these logins, a phone with an old password connects.
func (d *day) office(int) {
	addr := d.net()(44)
	for i := range 25 {
		h := d.laptop(addr)
		for at := 7*time.Hour + d.upTo(time.Hour); at < 18*time.Hour; at += d.between(15*time.Minute, 50*time.Minute) {
			wrong := 0
			if d.chance(2) {
				wrong = 1
			}
			d.login(&h, Midnight.Add(at), user(210+i), wrong, true)
		}
	}
	phone := d.laptop(addr)
	for at := 2 * time.Minute; at < 24*time.Hour; at += 5 * time.Minute {
		d.login(&phone, Midnight.Add(at+d.upTo(10*time.Second)), user(240), 1, false)
	}
}
