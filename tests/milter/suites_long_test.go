//go:build linux && long

package milter

import "testing"

// TestSuites is TestScenarios with Postfix and Sendmail from other Debian versions.
// tests/consumers.sh unpacks them.
func TestSuites(t *testing.T) {
	for _, suite := range []string{"trixie", "sid"} {
		t.Run(suite, func(t *testing.T) { playScenarios(t, suite) })
	}
}
