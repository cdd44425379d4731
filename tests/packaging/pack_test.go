//go:build linux

// Package packaging checks make install, the port and the Debian package.
package packaging

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"scanwatch/tests/internal/require"
	"scanwatch/tests/internal/smtpd"
)

const (
	project = "../.."
	port    = project + "/ports/mail/opensmtpd-filters/scanwatch"
)

// version is the version in the Makefile. All other versions are derived from it.
var version = makefileVersion()

func makefileVersion() string {
	makefile, err := os.ReadFile(project + "/Makefile")
	if err != nil {
		panic(err)
	}
	m := regexp.MustCompile(`(?m)^VERSION = (\d+\.\d+\.\d+)$`).FindSubmatch(makefile)
	if m == nil {
		panic("the Makefile has no VERSION")
	}
	return string(m[1])
}

func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		require.Program(t, p)
	}
}

func run(t *testing.T, dir string, env []string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, out, stderr.String())
	}
	return string(out)
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sources copies the sources of programs and packages to a new directory.
func sources(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"Makefile", "go.mod", "go.sum", "LICENSE", "README.md", "CHANGES.md", "DECISIONS.md", "cmd", "contrib", "filter", "internal", "man", "packaging", "rules", "store"} {
		run(t, project, nil, "cp", "-R", name, dir)
	}
	return dir
}

// edit replaces a text in a file below packaging in a copy of the sources.
func edit(t *testing.T, dir, name, old, text string) {
	t.Helper()
	name = filepath.Join(dir, "packaging", name)
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(read(t, name), old, text)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// fast avoids the default compression, which is slow, when the Debian package in dir is built.
// lintian accepts only some kinds.
func fast(t *testing.T, dir string) { edit(t, dir, "deb.sh", "-Zxz", "-Zxz -z0") }

// pretended returns a directory in which make install works without a build.
func pretended(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"Makefile", "contrib", "man", "packaging", "rules"} {
		run(t, project, nil, "cp", "-R", name, dir)
	}
	if err := os.Mkdir(filepath.Join(dir, "completions"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"filter-scanwatch", "milter-scanwatch", "scanwatch", "completions/bash", "completions/zsh", "completions/fish"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho "+name+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// installed returns the files under dir.
func installed(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(name, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

// TestVersions checks that all other files contain the same version as the Makefile, and that both
// changelogs contain the release date.
func TestVersions(t *testing.T) {
	for name, want := range map[string]string{
		project + "/packaging/debian/changelog": `^opensmtpd-filter-scanwatch \(` + version + `-\d+\) `,
		project + "/CHANGES.md":                 `\n## ` + version + ` \(\d{4}-\d\d-\d\d\)\n`,
		port + "/Makefile":                      `\nV =\t\t` + version + `\n`,
	} {
		if text := read(t, name); !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("%s does not match %q", name, want)
		}
	}
	_, text, _ := strings.Cut(read(t, project+"/CHANGES.md"), "\n## "+version+" (")
	date, _, _ := strings.Cut(text, ")")
	day, err := time.Parse(time.DateOnly, date)
	if changelog := read(t, project+"/packaging/debian/changelog"); err != nil || !strings.Contains(changelog, ">  "+day.Format("Mon, 02 Jan 2006 ")) {
		t.Errorf("CHANGES.md has the date %q (%v), debian/changelog is\n%s", date, err, changelog)
	}
}

// TestInstall checks that each directory can be set, and that nothing is installed
// elsewhere. uninstall must remove all files.
func TestInstall(t *testing.T) {
	for _, program := range []string{"make", "bmake"} {
		t.Run(program, func(t *testing.T) {
			needs(t, program)
			from := pretended(t)
			dest := t.TempDir()
			vars := []string{"DESTDIR=" + dest, "PREFIX=/p", "LIBEXECDIR=/l", "MANDIR=/m", "SYSCONFDIR=/s"}
			run(t, from, nil, append([]string{program, "-s", "install"}, vars...)...)
			files := installed(t, dest)
			for _, want := range []string{"/p/bin/scanwatch", "/p/sbin/milter-scanwatch", "/l/filter-scanwatch", "/m/man5/scanwatch.conf.5", "/m/man7/scanwatch-servers.7", "/m/man8/filter-scanwatch.8", "/m/man8/milter-scanwatch.8",
				"/m/man8/scanwatch.8", "/p/share/examples/scanwatch/standard.conf",
				"/p/share/examples/scanwatch/fail2ban/jail.d/scanwatch.conf", "/p/share/examples/scanwatch/sshguard/scanwatch-parser", "/p/share/zsh/site-functions/_scanwatch",
				"/p/lib/systemd/system/scanwatch-sync@.service", "/p/lib/systemd/system/scanwatch-serve.service", "/p/lib/systemd/system/scanwatch-lookup.service", "/p/lib/systemd/system/scanwatch-share.service", "/p/lib/tmpfiles.d/scanwatch.conf"} {
				if !slices.Contains(files, want) {
					t.Errorf("%s is not installed", want)
				}
			}
			for _, page := range files {
				if strings.HasPrefix(page, "/m/") && !strings.Contains(read(t, dest+page), "\n.Os scanwatch "+version+"\n") {
					t.Errorf("%s has another version", page)
				}
			}
			if unit := read(t, dest+"/p/lib/systemd/system/scanwatch-serve.service"); !strings.Contains(unit, "\nExecStart=/p/bin/scanwatch serve dns\n") {
				t.Errorf("the service starts another program:\n%s", unit)
			}
			run(t, from, nil, append([]string{program, "-s", "uninstall"}, vars...)...)
			if left := installed(t, dest); len(left) > 0 {
				t.Errorf("after uninstall there are %v", left)
			}
			// Debian's smtpd searches this directory for filters.
			run(t, from, nil, program, "-s", "install", "DESTDIR="+dest)
			if _, err := os.Stat(dest + "/usr/libexec/opensmtpd/filter-scanwatch"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPortList checks that the port's packing list contains the files that do-install installs. The
// test ignores files that the ports tree adds, but not directories.
func TestPortList(t *testing.T) {
	needs(t, "bmake")
	dest, from := t.TempDir(), pretended(t)
	work := t.TempDir()
	if err := os.Mkdir(filepath.Join(work, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"filter-scanwatch", "milter-scanwatch", "scanwatch"} {
		if err := os.Rename(filepath.Join(from, name), filepath.Join(work, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(from, "completions")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, "bsd.port.mk"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, port, nil, "bmake", "-r", "-s", "-m", work, "do-install", "WRKSRC="+from, "MODGO_WORKSPACE="+work, "PREFIX="+dest, "MAKE_PROGRAM=bmake -s")
	files := installed(t, dest)
	listed := make(map[string]bool)
	before := ""
	for line := range strings.Lines(read(t, port+"/pkg/PLIST")) {
		line = strings.TrimSuffix(line, "\n")
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "@newgroup", "@newuser", "@mode", "@owner", "@group":
			continue
		case "@sample":
			if before == "" && !strings.HasSuffix(rest, "/") {
				t.Errorf("%s is a sample of no file", line)
			}
			continue
		case "@rcscript":
			if name := filepath.Base(rest); !strings.Contains(read(t, port+"/pkg/"+name+".rc"), "rc_cmd $1") {
				t.Errorf("%s is not an rc.d script", name)
			}
			continue
		case "@bin", "@man":
			line = rest
		default:
			if strings.HasPrefix(word, "@") {
				t.Errorf("%s: unknown line", line)
			}
		}
		before = ""
		switch info, err := os.Stat(filepath.Join(dest, line)); {
		case strings.HasPrefix(line, "share/doc/pkg-readmes/"): // pkg/README
		case err != nil:
			t.Error(err)
		case info.IsDir() != strings.HasSuffix(line, "/"):
			t.Errorf("%s: only directories end in a slash", line)
		case !info.IsDir():
			listed["/"+line] = true
			before = line
		}
	}
	for _, f := range files {
		if !listed[f] {
			t.Errorf("%s is installed and not in the list", f)
		}
	}
}

// TestDebian checks that builds in two directories produce the same programs and the same package,
// and that lintian reports no problems. The package is then installed, used, upgraded, removed and
// purged on every Debian with a suitable smtpd.
func TestDebian(t *testing.T) {
	require.Full(t)
	needs(t, "dpkg-deb", "make")
	packages := make([]string, 2)
	bytesOf := make(map[string][]byte)
	for i := range packages {
		dir := sources(t)
		fast(t, dir)
		run(t, dir, nil, "make", "-s", "deb")
		found, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
		if len(found) != 1 {
			t.Fatalf("packages: %v", found)
		}
		packages[i] = found[0]
		for _, name := range []string{"scanwatch", "filter-scanwatch", "milter-scanwatch", filepath.Base(found[0])} {
			data := []byte(read(t, filepath.Join(dir, name)))
			if before, ok := bytesOf[name]; ok && !bytes.Equal(before, data) {
				t.Errorf("%s is not the same in another folder", name)
			}
			bytesOf[name] = data
		}
	}
	dir := filepath.Dir(packages[1])
	run(t, dir, nil, "make", "-s", "deb", "GOARCH=arm64")
	arm64, _ := filepath.Glob(filepath.Join(dir, "*_arm64.deb"))
	if len(arm64) != 1 {
		t.Fatalf("packages for arm64: %v", arm64)
	}
	t.Run("lintian", func(t *testing.T) {
		needs(t, "lintian")
		run(t, project, nil, "lintian", "--allow-root", "--fail-on", "error,warning", packages[0], arm64[0])
	})
	for machine, name := range map[elf.Machine]string{elf.EM_X86_64: packages[0], elf.EM_AARCH64: arm64[0]} {
		checkContents(t, name, machine)
	}
	// Build the next version like a maintainer.
	next := sources(t)
	newer := version + ".99"
	edit(t, next, "debian/changelog", version, newer)
	fast(t, next)
	run(t, next, nil, "make", "-s", "deb", "VERSION="+newer)
	upgrade, _ := filepath.Glob(filepath.Join(next, "*.deb"))
	if len(upgrade) != 1 {
		t.Fatalf("packages: %v", upgrade)
	}
	for _, v := range smtpd.Versions {
		suite := v.Root
		t.Run(suite, func(t *testing.T) {
			root := filepath.Join(rootsDir(), suite)
			if _, err := os.Stat(filepath.Join(root, "usr/sbin/smtpd")); err != nil || os.Getuid() != 0 {
				require.Missing(t, "no root for %s: run tests/roots.sh as root", suite)
			}
			script, err := filepath.Abs("deb.sh")
			if err != nil {
				t.Fatal(err)
			}
			args := append([]string{"unshare", "-mnpf", "--kill-child", "bash", script, root, packages[0], upgrade[0], t.TempDir()}, smtpdExamples(t)...)
			if out := run(t, project, nil, args...); !strings.Contains(out, "removed and purged") {
				t.Error(out)
			}
		})
	}
}

// checkContents checks that a package's programs are built for the machine in the package's
// name, and that the copyright file includes the licence of each module in them.
func checkContents(t *testing.T, name string, machine elf.Machine) {
	t.Helper()
	dir := t.TempDir()
	run(t, dir, nil, "dpkg-deb", "-x", name, ".")
	modules := map[string]bool{"Go": true}
	for _, program := range []string{"usr/bin/scanwatch", "usr/sbin/milter-scanwatch", "usr/libexec/opensmtpd/filter-scanwatch"} {
		f, err := elf.Open(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		info, err := buildinfo.ReadFile(filepath.Join(dir, program))
		if err != nil {
			t.Fatal(err)
		}
		arch := slices.IndexFunc(info.Settings, func(s debug.BuildSetting) bool { return s.Key == "GOARCH" })
		if f.Machine != machine || arch < 0 || !strings.HasSuffix(name, "_"+info.Settings[arch].Value+".deb") ||
			strings.TrimSpace(run(t, dir, nil, "dpkg-deb", "-f", name, "Architecture")) != info.Settings[arch].Value {
			t.Errorf("%s contains %s for %v", filepath.Base(name), program, f.Machine)
		}
		for _, m := range info.Deps {
			modules[m.Path] = true
		}
	}
	named := map[string]bool{}
	text := read(t, filepath.Join(dir, "usr/share/doc/opensmtpd-filter-scanwatch/copyright"))
	for _, m := range regexp.MustCompile(`(?m)^(Go|\S+\.\S+/\S+) (?i:licen[cs]e|copying|notice|patents)\S*$`).FindAllStringSubmatch(text, -1) {
		named[m[1]] = true
	}
	if got, want := slices.Sorted(maps.Keys(named)), slices.Sorted(maps.Keys(modules)); !slices.Equal(got, want) {
		t.Errorf("copyright has licences of\n%v, the programs contain\n%v", got, want)
	}
}

// TestUnits checks that the companions' services have few rights. The measure is the score of
// systemd-analyze(1), in tenths.
func TestUnits(t *testing.T) {
	needs(t, "systemd-analyze")
	units, err := filepath.Glob(filepath.Join(project, "packaging/systemd/*.service"))
	if err != nil || len(units) < 4 {
		t.Fatal(units, err)
	}
	for _, unit := range units {
		run(t, project, nil, "systemd-analyze", "security", "--offline=true", "--threshold=19", "packaging/systemd/"+filepath.Base(unit))
	}
}

// TestInstances checks that systemd accepts the services that make install installs. The instance
// names in the manual must select the right targets.
func TestInstances(t *testing.T) {
	needs(t, "make", "systemd-analyze", "systemd-escape")
	from, dest := pretended(t), t.TempDir()
	units := filepath.Join(dest, "units")
	run(t, from, nil, "make", "-s", "install", "PREFIX="+dest, "LIBEXECDIR="+dest+"/libexec", "UNITDIR="+units)
	verify := func(unit string) {
		t.Helper()
		run(t, units, nil, "systemd-analyze", "verify", "--man=no", filepath.Join(units, unit))
	}
	if err := os.Symlink("scanwatch-forward@.service", filepath.Join(units, "scanwatch-forward@url.service")); err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"scanwatch-milter-log.service", "scanwatch-serve.service", "scanwatch-lookup.service", "scanwatch-share.service", "scanwatch-forward@url.service", "scanwatch-update.service", "scanwatch-update.timer"} {
		verify(unit)
	}
	page := strings.ReplaceAll(read(t, project+"/man/scanwatch.8"), `\e`, `\`)
	targets := map[string]bool{}
	for _, line := range regexp.MustCompile(`(?ms)^systemctl enable --now "\$\(systemd-escape [^)]*\)"$`).FindAllString(page, -1) {
		unit := strings.TrimSpace(run(t, units, nil, "sh", "-euc", `systemctl() { echo "$3"; }; `+line))
		if err := os.Symlink("scanwatch-sync@.service", filepath.Join(units, unit)); err != nil {
			t.Fatal(err)
		}
		verify(unit)
		targets[strings.TrimSpace(run(t, units, nil, "systemd-escape", "--unescape", "--instance", unit))] = true
	}
	if !targets["/var/lib/scanwatch-bans/bans.cidr"] || !targets["inet filter scanwatch"] {
		t.Errorf("the manual has instances for %v", targets)
	}
}

// TestDebianArchitecture checks that the package has the architecture of its programs, even if they
// were built for a different system.
func TestDebianArchitecture(t *testing.T) {
	needs(t, "dpkg-deb", "make")
	dir := pretended(t)
	for _, name := range []string{"README.md", "CHANGES.md", "DECISIONS.md", "LICENSE", "go.mod", "go.sum", "cmd", "filter", "internal", "store"} {
		run(t, project, nil, "cp", "-R", name, dir)
	}
	fast(t, dir)
	program := filepath.Join(dir, "hello.go")
	if err := os.WriteFile(program, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for goarch, want := range map[string]string{"amd64": "amd64", "arm64": "arm64", "386": "i386"} {
		for _, name := range []string{"scanwatch", "filter-scanwatch", "milter-scanwatch"} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			run(t, dir, []string{"GOARCH=" + goarch, "CGO_ENABLED=0"}, "go", "build", "-o", name, program)
		}
		run(t, dir, nil, "sh", "packaging/deb.sh", version)
		if got := strings.TrimSpace(run(t, dir, nil, "dpkg-deb", "-f", "opensmtpd-filter-scanwatch_"+version+"-1_"+want+".deb", "Architecture")); got != want {
			t.Errorf("%s: the package is for %q", goarch, got)
		}
	}
}

// rootsDir returns the directory of the systems from tests/roots.sh.
func rootsDir() string {
	if dir := os.Getenv("SCANWATCH_ROOTS"); dir != "" {
		return dir
	}
	return "/var/cache/scanwatch-tests"
}

// smtpdExamples returns files with the manuals' examples of smtpd.conf(5).
func smtpdExamples(t *testing.T) (files []string) {
	t.Helper()
	dir := t.TempDir()
	pages, _ := filepath.Glob(project + "/man/*.[578]")
	for _, page := range pages {
		text := read(t, page)
		for _, m := range regexp.MustCompile(`(?s)\.Bd -literal -offset indent\n(.*?)\.Ed`).FindAllStringSubmatch(text, -1) {
			if !strings.Contains(m[1], "\nlisten on") {
				continue
			}
			name := filepath.Join(dir, fmt.Sprintf("%d.conf", len(files)))
			if err := os.WriteFile(name, []byte(m[1]), 0o644); err != nil {
				t.Fatal(err)
			}
			files = append(files, name)
		}
	}
	if len(files) < 3 {
		t.Errorf("only %d examples of smtpd.conf in the manuals", len(files))
	}
	return files
}
