package rules

import "testing"

// TestCheckClean checks that unusual but correct configurations cause no warning.
func TestCheckClean(t *testing.T) {
	tests := []struct{ name, src string }{
		{"a rule for clients that the first rule does not match",
			"rule a phase rcpt-to match helo x reject\nrule b phase rcpt-to match helo x auth reject"},
		{"an observed rule hides nothing",
			"rule a observe phase helo match helo x reject\nrule b phase helo match helo x disconnect"},
		{"a rule without decision hides nothing",
			"rule a phase helo match helo x delay 1s\nrule b phase helo match helo x disconnect"},
		{"a wider phase",
			"rule a phase helo match helo x reject\nrule b phase { helo, mail-from } match helo x reject"},
		{"another listener",
			"listener mx port 25\nlistener out port 587\nrule a on mx phase helo match helo x reject\nrule b on out phase helo match helo x reject\nrule c phase helo match helo x reject"},
		{"a wider rule after a narrower one",
			"rule a phase helo match src 192.0.2.1 reject\nrule b phase helo match src 192.0.2.0/24 reject\nrule c phase helo match !src 192.0.2.0/25 reject"},
		{"a negation that is wider",
			"rule a phase helo match !src 192.0.2.0/24 reject\nrule b phase helo match !src 192.0.2.1 reject"},
		{"a suffix is not the name above it",
			"rule a phase helo match helo .mail.example.org reject\nrule b phase helo match helo example.org reject"},
		{"a higher count first",
			"rule a phase rcpt-to match count relay-probe > 9 disconnect\nrule b phase rcpt-to match count relay-probe > 5 reject"},
		{"pass on one listener only",
			"listener mx port 25\npass on mx from 192.0.2.1\nrule a phase helo match src 192.0.2.1 reject"},
		{"tables that the program uses", "table <friends> builtin\ntable <local-domains> { }"},
		{"declared after its use", "rule a on mx phase connect match src <t> disconnect\ntable <t> { 192.0.2.1 }\nlistener mx port 25"},
		{"observed rules may match all clients", "rule a observe phase connect match any disconnect"},
	}
	for _, tt := range tests {
		if found := detail(mustParse(t, tt.src).Check(Options{})); found != "" {
			t.Errorf("%s:\n%s\n%s", tt.name, tt.src, found)
		}
	}
}
