//go:build linux && long

package milter

import "testing"

// TestSuites runs TestScenarios and TestJoin with Postfix and Sendmail from other Debian versions.
// tests/consumers.sh unpacks these servers.
func TestSuites(t *testing.T) {
	for _, suite := range []string{"trixie", "sid"} {
		t.Run(suite, func(t *testing.T) {
			playScenarios(t, suite)
			t.Run("join", func(t *testing.T) { playJoin(t, suite) })
		})
	}
}
