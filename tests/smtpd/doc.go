// Package smtpd runs real OpenSMTPD servers for tests and for the demo, and
// talks to them byte by byte.
//
// Each version lives in a private Debian root that tests/roots.sh has made.
// The servers and their clients share a network namespace of their own, in
// which every address is local: a client may come from any address, IPv4 or
// IPv6, and a small name server answers for the hosts a test made up. Nothing
// of it reaches a network, and nothing of it is left when the program ends.
//
// A test:
//
//	func TestMain(m *testing.M) {
//		smtpd.Main(m, "scanwatch/cmd/filter-scanwatch")
//	}
//
//	func TestGoodMail(t *testing.T) {
//		for _, v := range smtpd.Versions {
//			t.Run(v.Name, func(t *testing.T) {
//				smtpd.Require(t, v)
//				s, err := smtpd.Start(smtpd.Options{
//					Version: v,
//					Dir:     t.TempDir(),
//					Filters: []smtpd.Filter{{
//						Path: smtpd.Bin("filter-scanwatch"),
//						Args: []string{"-s", smtpd.StateDir},
//					}},
//					Hosts: []smtpd.Host{{Addr: "198.51.100.10", Name: "mail.example.net", Confirmed: true}},
//				})
//				if err != nil {
//					t.Fatal(err)
//				}
//				defer s.Stop()
//				c, err := s.Dial("198.51.100.10", smtpd.PortMX)
//				if err != nil {
//					t.Fatal(err)
//				}
//				defer c.Close()
//				c.ReadReply() // 220
//				reply, err := c.Cmd("EHLO mail.example.net")
//				// ...
//				if err := s.Stop(); err != nil {
//					t.Error(err)
//				}
//				// What the filter kept is in s.State().
//			})
//		}
//	}
//
// Or whole sessions from the table of Scenarios:
//
//	for _, sc := range smtpd.Scenarios {
//		dialogues, err := s.Play(sc)
//		// ...
//	}
//
// A program that is no test calls [Enter] first thing in main instead of
// [Main], and [Check] to see whether a version's root is there.
//
// # Environment
//
//   - SCANWATCH_ROOTS is where the roots are; /var/cache/scanwatch-tests if unset.
//   - SCANWATCH_NO_SKIP=1 turns what is missing from a reason to skip into a
//     failure.
package smtpd
