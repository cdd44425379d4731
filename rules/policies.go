package rules

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed policies/*.conf
var policyFiles embed.FS

// PolicyNames returns the names of the presets. The most lenient preset comes first.
func PolicyNames() []string { return []string{"open", "standard", "tight"} }

// ReadyPolicy returns the text of the preset with the given name.
func ReadyPolicy(name string) ([]byte, error) {
	b, err := policyFiles.ReadFile("policies/" + name + ".conf")
	if err != nil {
		return nil, fmt.Errorf("unknown preset %q; choose one of %s", name, strings.Join(PolicyNames(), ", "))
	}
	return b, nil
}
