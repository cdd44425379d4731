//go:build linux

package packaging

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"scanwatch/tests/internal/require"
)

// systems lists the systems of make cross.
var systems = []string{"linux", "openbsd", "freebsd", "netbsd"}

// programs lists the programs' packages.
var programs = []string{"./cmd/filter-scanwatch", "./cmd/milter-scanwatch", "./cmd/scanwatch"}

// repository returns a clone of the project in a new directory. The clone's last commit contains
// the files of the work tree, and has a fixed time.
func repository(t *testing.T) string {
	t.Helper()
	needs(t, "git")
	if _, err := os.Stat(project + "/.git"); err != nil {
		require.Missing(t, "no repository: %v", err)
	}
	dir := t.TempDir()
	files := run(t, project, nil, "git", "ls-files", "--cached", "--others", "--exclude-standard")
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte(files), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, project, nil, "sh", "-euc", `while read -r f; do [ ! -e "$f" ] || echo "$f"; done <"$1" | tar -cf - -T - | tar -xf - -C "$2"`, "sh", list, dir)
	run(t, dir, nil, "git", "init", "-q")
	run(t, dir, nil, "git", "add", "-A")
	run(t, dir, []string{"GIT_COMMITTER_DATE=2026-12-01T12:00:00Z"}, "git", "-c", "commit.gpgsign=false", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "release")
	return dir
}

// linked returns the modules that the programs contain on the given systems.
func linked(t *testing.T, systems ...string) []string {
	t.Helper()
	all := map[string]bool{}
	for _, system := range systems {
		args := append([]string{"go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}"}, programs...)
		for _, m := range strings.Fields(run(t, project, []string{"GOOS=" + system, "CGO_ENABLED=0"}, args...)) {
			all[m] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// TestArchive checks that two repositories with the same files and commit time produce
// the same source archive, and that the checksums match the archive.
func TestArchive(t *testing.T) {
	require.Full(t)
	needs(t, "make", "openssl", "sha256sum", "unshare")
	name := "scanwatch-" + version
	var dist string
	var before []byte
	for range 2 {
		dist = filepath.Join(repository(t), "dist")
		run(t, filepath.Dir(dist), nil, "make", "-s", "dist")
		archive := []byte(read(t, filepath.Join(dist, name+".tar.gz")))
		if before != nil && string(archive) != string(before) {
			t.Error("the archive differs in another repository")
		}
		before = archive
	}
	run(t, dist, nil, "sha256sum", "--quiet", "-c", "SHA256")
	hash := sha256.Sum256(before)
	distinfo := read(t, filepath.Join(dist, "distinfo"))
	want := fmt.Sprintf("SHA256 (%s.tar.gz) = %s\nSIZE (%s.tar.gz) = %d\n", name, base64.StdEncoding.EncodeToString(hash[:]), name, len(before))
	if distinfo != want {
		t.Errorf("distinfo is\n%swant\n%s", distinfo, want)
	}

	licences := regexp.MustCompile(`(?m)^==> (\S+) `).FindAllStringSubmatch(read(t, filepath.Join(unpacked(t, dist), "LICENSES")), -1)
	named := map[string]bool{}
	for _, m := range licences {
		named[m[1]] = true
	}
	if got, want := slices.Sorted(maps.Keys(named)), append([]string{"Go"}, linked(t, systems...)...); !slices.Equal(got, want) {
		t.Errorf("LICENSES has licences of\n%v, the programs have\n%v", got, want)
	}
}

// unpacked unpacks the source archive in the directory dist and returns the new directory.
func unpacked(t *testing.T, dist string) string {
	t.Helper()
	top := t.TempDir()
	name := "scanwatch-" + version
	run(t, top, nil, "tar", "-xzf", filepath.Join(dist, name+".tar.gz"))
	return filepath.Join(top, name)
}

// oldest returns the oldest version of Go that builds the project.
func oldest(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^go (\d\S+)$`).FindStringSubmatch(read(t, project+"/go.mod"))
	if m == nil {
		t.Fatal("go.mod has no line go")
	}
	return "go" + m[1]
}

// TestOldestGo checks that go.mod requires the oldest version of Go that the programs' modules
// permit. The README must name this version and these modules.
func TestOldestGo(t *testing.T) {
	out := run(t, project, []string{"CGO_ENABLED=0"}, append([]string{"go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}} go{{.GoVersion}}{{end}}{{end}}"}, programs...)...)
	var need []string
	for _, line := range slices.Compact(slices.Sorted(strings.Lines(out))) {
		module, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		if version == oldest(t) {
			need = append(need, module)
		}
	}
	if len(need) == 0 {
		t.Errorf("no module needs %s: lower the line in go.mod", oldest(t))
	}
	readme := strings.Join(strings.Fields(read(t, project+"/README.md")), " ")
	if want := "Go " + strings.TrimPrefix(oldest(t), "go") + " or newer"; !strings.Contains(readme, want) {
		t.Errorf("README.md does not have %q", want)
	}
	for _, module := range need {
		if !regexp.MustCompile(regexp.QuoteMeta(module) + `[,. ]`).MatchString(readme) {
			t.Errorf("README.md does not say that %s needs %s", module, oldest(t))
		}
	}
	if strings.Contains(read(t, project+"/go.mod"), "\ntoolchain ") {
		t.Error("go.mod names a toolchain, which Go would download for a build from the archive")
	}
}

// TestDependencies checks that DECISIONS.md gives a reason for each module in go.mod,
// and that the README gives the right numbers.
func TestDependencies(t *testing.T) {
	_, table, ok := strings.Cut(read(t, project+"/DECISIONS.md"), "\n## Dependencies\n")
	if !ok {
		t.Fatal("DECISIONS.md has no dependencies")
	}
	listed := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (\S+\.\S+.*?) \|`).FindAllStringSubmatch(table, -1) {
		for name := range strings.SplitSeq(row[1], ", ") {
			listed[name] = true
		}
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	// go list -m needs the network unless all modules of the graph are in the cache.
	if err := json.Unmarshal([]byte(run(t, project, nil, "go", "mod", "edit", "-json")), &mod); err != nil || len(mod.Require) == 0 {
		t.Fatal(mod, err)
	}
	for _, require := range mod.Require {
		if require.Indirect {
			continue
		}
		module := require.Path
		// If a row lists several modules, only the first has the complete path.
		_, short, _ := strings.Cut(module, "/")
		_, shorter, _ := strings.Cut(short, "/")
		if !listed[module] && !listed[short] && !listed[shorter] {
			t.Errorf("DECISIONS.md has no reason for %s", module)
		}
	}
	filter := strings.Fields(run(t, project, []string{"CGO_ENABLED=0"}, "go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", programs[0]))
	slices.Sort(filter)
	want := fmt.Sprintf("contain %d modules from other projects, and `filter-scanwatch` alone contains %d.", len(linked(t, systems...)), len(slices.Compact(filter)))
	if readme := strings.Join(strings.Fields(read(t, project+"/README.md")), " "); !strings.Contains(readme, want) {
		t.Errorf("README.md does not have %q", want)
	}
}

// TestServices checks that the package stops each of its services when it is removed, and restarts
// it after an upgrade.
func TestServices(t *testing.T) {
	units, err := filepath.Glob(project + "/packaging/systemd/*.service")
	if err != nil || len(units) == 0 {
		t.Fatal(units, err)
	}
	// services returns the services that a script stops or restarts.
	services := func(script, command string) string {
		_, list, _ := strings.Cut(read(t, project+"/packaging/debian/"+script), "deb-systemd-invoke "+command+" ")
		list, _, _ = strings.Cut(list, "||")
		return " " + strings.Join(strings.Fields(strings.ReplaceAll(list, "'", "")), " ") + " "
	}
	for _, unit := range units {
		if strings.Contains(read(t, unit), "Type=oneshot") {
			continue
		}
		name := strings.Replace(filepath.Base(unit), "@.", "@*.", 1)
		for script, command := range map[string]string{"postinst": "try-restart", "prerm": "stop"} {
			if list := services(script, command); !strings.Contains(list, " "+name+" ") {
				t.Errorf("%s: %s is not in the list of %s:%s", script, name, command, list)
			}
		}
	}
}

// TestPurge checks that a purge removes the directories that the services create.
func TestPurge(t *testing.T) {
	units, err := filepath.Glob(project + "/packaging/systemd/*.service")
	if err != nil {
		t.Fatal(err)
	}
	postrm := read(t, project+"/packaging/debian/postrm")
	for _, unit := range units {
		for _, m := range regexp.MustCompile(`(?m)^StateDirectory=(\S+)$`).FindAllStringSubmatch(read(t, unit), -1) {
			if dir := "/var/lib/" + strings.ReplaceAll(m[1], "%i", "*"); !strings.Contains(postrm, " "+dir+" ") {
				t.Errorf("the directory %s of %s remains", dir, filepath.Base(unit))
			}
		}
	}
}
