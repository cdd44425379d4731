//go:build linux && long

package milter

import "testing"

// TestSuites is TestScenarios and TestJoin with Postfix and Sendmail from other Debian versions.
// tests/consumers.sh unpacks them.
func TestSuites(t *testing.T) {
	for _, suite := range []string{"trixie", "sid"} {
		t.Run(suite, func(t *testing.T) {
			playScenarios(t, suite)
			t.Run("join", func(t *testing.T) { playJoin(t, suite) })
		})
	}
}
