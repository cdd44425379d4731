package simulate

// This file generates attacks.

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"time"
)

// An Attack is distributed: each session comes from a different network. After 256 networks, the
// attack continues from other hosts in the same networks.
type Attack struct {
	Seed     uint64
	Start    time.Time
	Every    time.Duration // average time between sessions
	Sessions int
	Each     int // recipients or passwords tried per session
}

// dictionary is a harvester's word list. All harvesters use similar words.
var dictionary = []string{
	"info", "admin", "sales", "contact", "office", "support", "test", "webmaster", "mail", "hr", "jobs", "billing", "accounts", "team", "hello",
	"marketing", "service", "help", "it", "root", "news", "press", "shop", "order", "orders", "careers", "finance", "legal", "security", "noreply",
	"alice", "ben", "carla", "david", "emma", "frank", "george", "hans", "ivan", "john", "karl", "laura", "maria", "nina", "oliver", "paul", "peter",
	"robert", "sarah", "thomas", "tom", "victor", "walter", "xavier", "yvonne", "zoe", "anna", "michael", "daniel", "chris", "mark", "james", "kate",
	"j.smith", "a.jones", "m.brown", "d.taylor", "s.wilson", "r.davies", "p.evans", "k.thomas", "l.johnson", "n.roberts", "c.walker", "t.wright",
	"alice.adler", "ben.becker", "john.doe", "jane.doe", "scan", "fax", "backup", "ftp", "user", "guest", "demo", "temp", "oracle", "postgres",
}

// Harvest returns the sessions of a distributed directory harvest. Each session requests the next
// words in the dictionary. The dictionary is used several times, so that several hosts request the
// same mailbox.
func Harvest(a Attack) iter.Seq[Session] {
	return a.sessions("harvest", 25, func(s *Session, r *rand.Rand, i int) {
		add := func(kind Kind, text string, fate Fate) {
			s.Steps = append(s.Steps, Step{Kind: kind, Gap: 60*time.Millisecond + upTo(r, 200*time.Millisecond), Text: text, Fate: fate})
		}
		add(Ehlo, bot(r), OK)
		add(Mail, fmt.Sprintf("%s%d@example.com", firsts[r.IntN(len(firsts))], r.IntN(1000)), OK)
		at := i*a.Each + r.IntN(3)
		for j := range a.Each {
			word, fate := dictionary[(at+j)%len(dictionary)], OK
			if !Exists(word) {
				fate = Unknown
			}
			add(Rcpt, word+"@"+Domain, fate)
		}
		add(Rset, "", OK)
		add(Quit, "", OK)
	})
}

// Guess returns the sessions of hosts that brute-force local users' passwords.
func Guess(a Attack) iter.Seq[Session] {
	return a.sessions("guess", 587, func(s *Session, r *rand.Rand, i int) {
		add := func(kind Kind, text string, fate Fate) {
			s.Steps = append(s.Steps, Step{Kind: kind, Gap: 60*time.Millisecond + upTo(r, 200*time.Millisecond), Text: text, Fate: fate})
		}
		add(Ehlo, bot(r), OK)
		add(StartTLS, "", OK)
		for range a.Each {
			name := user(r.IntN(Mailboxes))
			if r.IntN(3) > 0 {
				name = dictionary[r.IntN(len(dictionary))]
			}
			add(Auth, name, Unknown)
		}
		add(Drop, "", OK)
	})
}

// bot returns a random name for HELO, as infected computers use.
func bot(r *rand.Rand) string {
	b := make([]byte, 6+r.IntN(4))
	for i := range b {
		b[i] = 'a' + byte(r.IntN(26))
	}
	return string(b)
}

func (a Attack) sessions(label string, port uint16, write func(s *Session, r *rand.Rand, i int)) iter.Seq[Session] {
	return func(yield func(Session) bool) {
		r := rand.New(rand.NewPCG(a.Seed, 2))
		nets := r.Perm(attackNets)
		at := a.Start
		for i := range a.Sessions {
			addr := netip.AddrFrom4([4]byte{198, 19, byte(nets[i%attackNets]), byte(3 + i/attackNets*7%250)})
			s := Session{Label: label, Start: at, Src: netip.AddrPortFrom(addr, uint16(1024+r.IntN(60_000))), Dst: serverAddr(addr, port), FCrDNS: "fail"}
			if r.IntN(3) > 0 { // the name that the provider has derived for the line
				b := addr.As4()
				s.RDNS, s.FCrDNS = fmt.Sprintf("host-%d-%d-%d-%d.isp-%d.example", b[0], b[1], b[2], b[3], b[2]), "pass"
			}
			write(&s, r, i)
			if !yield(s) {
				return
			}
			at = at.Add(a.Every/2 + upTo(r, a.Every+1))
		}
	}
}
