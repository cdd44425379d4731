package rules

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with a file. With -update, golden writes the file.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run the test with -update and review the file", err)
	}
	if got != string(want) {
		t.Errorf("%s:\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// detail returns the diagnostics that a command prints for a configuration.
func detail(warnings Errors, err error) string {
	var es Errors
	if errors.As(err, &es) {
		return es.Detail() + warnings.Detail()
	}
	if err != nil {
		return "not an Errors: " + err.Error()
	}
	return warnings.Detail()
}

func TestBroken(t *testing.T) {
	const dir = "testdata/broken"
	files, err := filepath.Glob(dir + "/*.conf")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files, %v; want at least 40", len(files), err)
	}
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".conf"), func(t *testing.T) {
			c, err := Parse(filepath.Base(file), read)
			var warnings Errors
			if err == nil {
				_, warnings, err = Compile(c, Options{})
			}
			got := detail(warnings, err)
			if got == "" {
				t.Errorf("nothing was found wrong with %s", file)
			}
			for _, line := range strings.Split(got, "\n") {
				if strings.ContainsFunc(line, func(r rune) bool { return r != '\t' && !printable(r) }) {
					t.Errorf("unprintable output: %q", line)
				}
			}
			golden(t, strings.TrimSuffix(file, ".conf")+".golden", got)
		})
	}
}
