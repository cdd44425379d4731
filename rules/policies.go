package rules

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed policies/*.conf
var policyFiles embed.FS

// PolicyNames are the ready policies, the mildest first.
func PolicyNames() []string { return []string{"open", "standard", "tight"} }

// ReadyPolicy returns the text of a ready policy.
func ReadyPolicy(name string) ([]byte, error) {
	b, err := policyFiles.ReadFile("policies/" + name + ".conf")
	if err != nil {
		return nil, fmt.Errorf("there is no ready policy %q: choose one of %s", name, strings.Join(PolicyNames(), ", "))
	}
	return b, nil
}
