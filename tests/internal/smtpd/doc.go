// Package smtpd runs real OpenSMTPD servers for tests and for the demo. Clients send and
// receive raw bytes.
//
// Each version has its own Debian root, created by tests/roots.sh. The servers and their clients
// share a network namespace in which every address is local. Clients can therefore use any IPv4 or
// IPv6 address. A small DNS server answers queries about the test's hosts. No packets leave the
// namespace, and the namespace is removed when the program ends.
//
// An example of a test:
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
//				// s.State() is the state directory of the filter.
//			})
//		}
//	}
//
// Scenarios is a table of complete sessions:
//
//	for _, sc := range smtpd.Scenarios {
//		dialogues, err := s.Play(sc)
//		// ...
//	}
//
// Programs other than tests must first call [Enter] instead of [Main]. [Check] reports whether a
// version's root exists.
//
// # Environment
//
//   - SCANWATCH_ROOTS is the directory of the roots. The default is
//     /var/cache/scanwatch-tests.
//   - SCANWATCH_NO_SKIP=1 makes tests fail that would be skipped because a root or
//     a program is missing.
package smtpd
