package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestSelf checks that the commands in an answer repeat -f and -s, so that a copied command affects
// the same front end, even if a name contains spaces or quotation marks.
func TestSelf(t *testing.T) {
	t.Chdir(t.TempDir())
	const conf, dir = "it's.conf", "two words"
	if err := errors.Join(mkViews(dir), os.WriteFile(filepath.Join(dir, "front-end"), []byte("smtpd 1\n"), 0o640), os.WriteFile(conf, []byte(viewsConf), 0o644)); err != nil {
		t.Fatal(err)
	}
	hint := regexp.MustCompile(`(?m)^(?:  details  |    )(scanwatch .*)$`)
	found := map[string]bool{}
	for _, args := range []string{"why 2001:db8:7::1", "why 2001:db8:7::/64", "why --as user erin", "report", "report --mail"} {
		var stdout, stderr bytes.Buffer
		if status := program(&stderr).main(append([]string{"-f", conf, "-s", dir}, strings.Fields(args)...), &stdout); status != exitOK {
			t.Fatal(stderr.String())
		}
		for _, m := range hint.FindAllStringSubmatch(stdout.String(), -1) {
			words, err := exec.Command("sh", "-c", `printf '%s\n' `+m[1]).Output()
			if err != nil {
				t.Fatal(err)
			}
			line := strings.Split(string(words), "\n")
			if len(line) < 7 || strings.Join(line[:5], "|") != "scanwatch|-f|"+conf+"|-s|"+dir {
				t.Errorf("%s prints %s", args, m[1])
				continue
			}
			found[line[5]] = true
		}
	}
	for _, command := range []string{"unban", "show", "why"} {
		if !found[command] {
			t.Errorf("no hint with %s in %v", command, found)
		}
	}
	if s := self(program(nil)); s != "scanwatch" {
		t.Errorf("without options: %q", s)
	}
}
