package smtpd

import "testing"

// TestRedactLog checks that lines in an unknown format contain no secrets, and show the format.
func TestRedactLog(t *testing.T) {
	for line, want := range map[string]string{
		"203.0.113.48   [0968] 16:14:04 <<< b2ZmaWNl":                            "203.0.113.48   [0968] 16:14:04 <<< ********",
		"203.0.113.48   [0968] 16:14:04 <<< hunter":                              "203.0.113.48   [0968] 16:14:04 <<< ********",
		"203.0.113.48   [0968] 16:14:04 <<< EHLO x\r":                            "203.0.113.48   [0968] 16:14:04 <<< EHLO x",
		"203.0.113.48   [0968] Fri 16:14:01 Connected, local IP=192.0.2.25:25":   "203.0.113.48   [0968] Fri 16:14:01 Connected, local IP=192.0.2.25:25",
		"Sat 2026-11-28 12:58:47: 02: [514116] <-- AUTH PLAIN x":                 "Sat 2026-11-28 12:58:47: 02: [514116] <-- AUTH PLAIN ********",
		"[smtp.1:14] [2017-05-15T10:25:12.762] DEBUG -- : [D9WT5N] \x1b[33m<= x": "[smtp.1:14] [2017-05-15T10:25:12.762] DEBUG -- : [********] \x1b[33m<= ********",
		"Nov 29 07:40:00 mx postfix/smtpd[16098]: a new line":                    "Nov 29 07:40:00 mx postfix/smtpd[16098]: a new line",
		"Nov 29 07:40:00 mx x[1]: EHLO x\\r\\nAUTH LOGIN\\r\\nhunter":            "Nov 29 07:40:00 mx x[1]: EHLO ********",
		`{"type":"Rejection","command":"aHVudGVyMg=="}`:                          `{"type":"Rejection","command":"********"}`,
		`{"command":"AUTH PLAIN hunter"}`:                                        `********`,
	} {
		if got := string(RedactLog([]byte(line))); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
