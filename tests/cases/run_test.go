package cases

import (
	"strings"
	"testing"
)

// Run plays cases under their presets.
func Run(t *testing.T, list []Case) {
	t.Helper()
	for i := range list {
		c := &list[i]
		presets := c.Presets
		if len(presets) == 0 {
			presets = []string{"standard", "tight"}
		}
		if c.Lines != "" {
			presets = []string{"own"}
		}
		for _, preset := range presets {
			t.Run(c.Name+"/"+preset, func(t *testing.T) {
				s, err := New(c, preset)
				if err != nil {
					t.Fatal(err)
				}
				c.Play(s)
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if n := len(s.Fails); n > 0 {
					t.Errorf("%d failures:\n%s", n, strings.Join(s.Fails[:min(3, n)], "\n"))
				}
			})
		}
	}
}
