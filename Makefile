# Each target is one command. The file works with GNU make and BSD make.

VERSION = 0.1.0
PREFIX = /usr/local
BINDIR = ${PREFIX}/bin
SBINDIR = ${PREFIX}/sbin
# The programs contain the path of scanwatch.conf: set SYSCONFDIR for "make" and
# for "make install".
SYSCONFDIR = /etc
EXAMPLEDIR = ${PREFIX}/share/examples/scanwatch
BASHDIR = ${PREFIX}/share/bash-completion/completions
ZSHDIR = ${PREFIX}/share/zsh/site-functions
FISHDIR = ${PREFIX}/share/fish/vendor_completions.d
# smtpd searches one directory for filters: /usr/local/libexec/smtpd on OpenBSD,
# /usr/libexec/opensmtpd on Debian regardless of the prefix.
LIBEXECDIR != case $$(uname) in OpenBSD) echo ${PREFIX}/libexec/smtpd ;; Linux) echo /usr/libexec/opensmtpd ;; *) echo ${PREFIX}/libexec/opensmtpd ;; esac
# systemd searches these directories, also below /usr/local. An empty value omits the
# services of the companions.
UNITDIR != case $$(uname) in Linux) echo ${PREFIX}/lib/systemd/system ;; esac
TMPFILESDIR = ${PREFIX}/lib/tmpfiles.d
MANDIR != case $$(uname) in *BSD) echo ${PREFIX}/man ;; *) echo ${PREFIX}/share/man ;; esac
GO = go
# A release is built with this Go: older versions have known vulnerabilities in the
# standard library.
RELEASEGO = go1.26.11
# "make debs" builds these packages, and "make deb GOARCH=arm64" one of them.
DEBARCHS = arm64 amd64
# Architectures of make cross.
ARCHS = amd64 arm64
FUZZTIME = 60s
# Builds are reproducible: the output does not depend on the directory.
GOBUILD = CGO_ENABLED=0 ${GO} build -trimpath -buildvcs=false \
	-ldflags "-s -w -X main.version=${VERSION} -X scanwatch/cmd/internal/config.sysconfdir=${SYSCONFDIR}"
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT = golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
MISSPELL = github.com/golangci/misspell/cmd/misspell@v0.8.0
SHFMT = mvdan.cc/sh/v3/cmd/shfmt@v3.14.1
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
# The module of the vulnerability database contains all its reports.
VULNDB = golang.org/x/vulndb@v0.0.0-20261105234957-e22db6528018
CYCLONEDX = github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

all: filter-scanwatch milter-scanwatch scanwatch completions

# go build decides which packages are up to date.
.PHONY: all filter-scanwatch milter-scanwatch scanwatch test test-long test-short race check fuzz mutants bench bench-code bench-filters golden man html roots demo completions install uninstall cross cross-test deb debs dist sbom vuln release clean

filter-scanwatch:
	${GOBUILD} -o filter-scanwatch ./cmd/filter-scanwatch

milter-scanwatch:
	${GOBUILD} -o milter-scanwatch ./cmd/milter-scanwatch

scanwatch:
	${GOBUILD} -o scanwatch ./cmd/scanwatch

# A program for another system does not run here: build one for this system.
completions: scanwatch
	@mkdir -p completions
	@for shell in bash zsh fish; do \
		./scanwatch completion $$shell > completions/$$shell 2>/dev/null || \
		GOOS= GOARCH= ${GO} run ./cmd/scanwatch completion $$shell > completions/$$shell || exit; done

# Build the programs for each system with a package of OpenSMTPD, in cross/.
cross:
	for os in linux openbsd freebsd netbsd; do for arch in ${ARCHS}; do \
		GOOS=$$os GOARCH=$$arch; export GOOS GOARCH; echo $$os/$$arch; \
		${GOBUILD} -o cross/$$os-$$arch/ ./cmd/filter-scanwatch ./cmd/milter-scanwatch ./cmd/scanwatch || exit; done; done

# Compile the tests for the other systems.
cross-test:
	for os in openbsd freebsd netbsd; do echo $$os; \
		GOOS=$$os CGO_ENABLED=0 ${GO} test -c -trimpath -ldflags "-s -w" -o /dev/null ./cmd/... ./filter/... ./rules/... ./store/... ./internal/... || exit; done

# Run the tests of CI: each real smtpd with the core scenario, all other tests
# with the newest one. Many tests wait for timers: run four packages at a time. Needs
# root. The first run creates private Debian systems. The programs that many packages
# need are built once. The slowest packages come first. "make check" includes vet.
test: roots man
	dir=$$(mktemp -d) && CGO_ENABLED=0 ${GO} build -o $$dir/ ./cmd/... ./tests/teefilter && \
	{ SCANWATCH_PREBUILT=$$dir ${GO} test -count=1 -p 4 -timeout 30m -vet=off -ldflags=-w \
	./tests/e2e ./tests/packaging ./cmd/scanwatch ./tests/promises ./tests/milter ./...; \
	status=$$?; rm -rf $$dir; exit $$status; }

# Run all tests on all versions of smtpd, long simulations and measurements, then
# the fuzz targets and the mutation test. See tests/README.md.
test-long: roots man cross-test
	sh tests/consumers.sh
	sh tests/consumers.sh trixie sid
	${GO} test -count=1 -timeout 4h -p 1 -tags long ./...
	for seed in 2 3 4 5 6 7 8 9; do ${GO} test -count=1 -run '^TestDay$$' ./tests/simulate -args -seed $$seed || exit; done
	FUZZTIME=${FUZZTIME} sh tests/fuzz.sh
	sh tests/mutants.sh

# Run the tests that need no real server.
test-short:
	${GO} test -count=1 -short ./...

race:
	${GO} test -race -short ./...

# Check format, spelling and common mistakes.
check:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w"; exit 1; }
	${GO} vet ./... && ${GO} vet -tags long,others ./...
	GOOS=openbsd ${GO} vet ./cmd/... ./filter/... ./rules/... ./store/...
	GOOS=openbsd GOARCH=386 ${GO} vet ./cmd/... ./filter/... ./rules/... ./store/...
	${GO} run ${STATICCHECK} ./... && ${GO} run ${STATICCHECK} -tags long,others ./tests/...
	git ls-files '*.sh' .ci/run 'packaging/debian/p*' | xargs ${GO} run ${SHFMT} -d
	git ls-files ':!*/testdata/*' ':!tests/streams' | xargs ${GO} run ${MISSPELL} -error -i rela

fuzz:
	FUZZTIME=${FUZZTIME} sh tests/fuzz.sh

# Check that the tests of package filter/smtpd fail if the filter omits an answer.
mutants:
	sh tests/mutants.sh

bench: bench-code bench-filters

bench-code:
	${GO} test -run '^$$' -bench . -benchmem -count 10 ./filter/... ./rules/... ./store/... ./internal/backtest | tee bench.txt
	${GO} run ${BENCHSTAT} bench.txt

# Measure the cost of the filter, of other filters and of a real server with it,
# and compare with the goals. Takes half an hour; BENCHFLAGS="-parts speed
# -pairs 3" takes less.
bench-filters:
	${GO} run ./tests/bench ${BENCHFLAGS}

# Rewrite the golden files. Review the difference before you commit it.
golden:
	sh tests/golden.sh

# Check the manuals. References to manuals of other programs may be missing here.
man:
	@if command -v mandoc >/dev/null; then \
		faults=$$(mandoc -Tlint -Wstyle man/*.[578] | grep -v 'referenced manual not found'); \
		test -z "$$faults" || { echo "$$faults"; exit 1; }; echo "manuals are clean"; \
	else echo "SKIP: mandoc is not installed, manuals are not checked"; test -z "$$SCANWATCH_NO_SKIP"; fi

html:
	@mkdir -p html
	cp man/manual.css html/
	cd man && for page in *.[578]; do \
		mandoc -Thtml -O "style=manual.css,man=%N.%S.html;https://man.openbsd.org/%N.%S" \
			$$page > ../html/$$page.html || exit; done

roots:
	sh tests/roots.sh

demo: all
	sh tests/demo.sh

# Copy the programs without building them: root may have no Go in its PATH. The
# programs run without a configuration, so none is installed.
install:
	@test -x filter-scanwatch -a -x milter-scanwatch -a -x scanwatch -a -f completions/fish || { echo "run make first"; exit 1; }
	install -d ${DESTDIR}${BINDIR} ${DESTDIR}${SBINDIR} ${DESTDIR}${LIBEXECDIR} ${DESTDIR}${MANDIR}/man5 ${DESTDIR}${MANDIR}/man7 ${DESTDIR}${MANDIR}/man8
	install -m 755 scanwatch ${DESTDIR}${BINDIR}/
	install -m 755 filter-scanwatch ${DESTDIR}${LIBEXECDIR}/
	install -m 755 milter-scanwatch ${DESTDIR}${SBINDIR}/
	for page in man/*.[578]; do to=${DESTDIR}${MANDIR}/man$${page##*.}/$${page#man/}; \
		sed 's/^\.Os$$/.Os scanwatch ${VERSION}/' $$page >$$to && chmod 644 $$to || exit; done
	install -d ${DESTDIR}${EXAMPLEDIR} ${DESTDIR}${BASHDIR} ${DESTDIR}${ZSHDIR} ${DESTDIR}${FISHDIR}
	install -m 644 rules/policies/*.conf packaging/examples/*.conf ${DESTDIR}${EXAMPLEDIR}/
	install -d ${DESTDIR}${EXAMPLEDIR}/fail2ban/filter.d ${DESTDIR}${EXAMPLEDIR}/fail2ban/jail.d
	install -m 644 contrib/fail2ban/filter.d/*.conf ${DESTDIR}${EXAMPLEDIR}/fail2ban/filter.d/
	install -m 644 contrib/fail2ban/jail.d/*.conf ${DESTDIR}${EXAMPLEDIR}/fail2ban/jail.d/
	install -d ${DESTDIR}${EXAMPLEDIR}/crowdsec/parsers/s01-parse ${DESTDIR}${EXAMPLEDIR}/crowdsec/scenarios
	install -m 644 contrib/crowdsec/parsers/s01-parse/*.yaml ${DESTDIR}${EXAMPLEDIR}/crowdsec/parsers/s01-parse/
	install -m 644 contrib/crowdsec/scenarios/*.yaml ${DESTDIR}${EXAMPLEDIR}/crowdsec/scenarios/
	install -d ${DESTDIR}${EXAMPLEDIR}/sshguard
	install -m 755 contrib/sshguard/scanwatch-parser ${DESTDIR}${EXAMPLEDIR}/sshguard/
	install -d ${DESTDIR}${EXAMPLEDIR}/perl-logger
	install -m 644 contrib/perl-logger/README ${DESTDIR}${EXAMPLEDIR}/perl-logger/
	install -m 755 contrib/perl-logger/logger2smtpd ${DESTDIR}${EXAMPLEDIR}/perl-logger/
	install -m 644 completions/bash ${DESTDIR}${BASHDIR}/scanwatch
	install -m 644 completions/zsh ${DESTDIR}${ZSHDIR}/_scanwatch
	install -m 644 completions/fish ${DESTDIR}${FISHDIR}/scanwatch.fish
	test -z "${UNITDIR}" || { install -d ${DESTDIR}${UNITDIR} ${DESTDIR}${TMPFILESDIR} && \
		install -m 644 packaging/systemd/scanwatch* ${DESTDIR}${UNITDIR}/ && \
		sed -i 's,/usr/bin/scanwatch,${BINDIR}/scanwatch,; s,/usr/sbin/milter,${SBINDIR}/milter,' ${DESTDIR}${UNITDIR}/scanwatch* && \
		install -m 644 packaging/systemd/tmpfiles.conf ${DESTDIR}${TMPFILESDIR}/scanwatch.conf; }

# Keep the configuration and the records.
uninstall:
	rm -f ${DESTDIR}${BINDIR}/scanwatch ${DESTDIR}${SBINDIR}/milter-scanwatch ${DESTDIR}${LIBEXECDIR}/filter-scanwatch
	rm -f ${DESTDIR}${MANDIR}/man5/scanwatch.conf.5 ${DESTDIR}${MANDIR}/man7/scanwatch-servers.7 ${DESTDIR}${MANDIR}/man8/filter-scanwatch.8 ${DESTDIR}${MANDIR}/man8/milter-scanwatch.8 ${DESTDIR}${MANDIR}/man8/scanwatch.8
	rm -f ${DESTDIR}${BASHDIR}/scanwatch ${DESTDIR}${ZSHDIR}/_scanwatch ${DESTDIR}${FISHDIR}/scanwatch.fish
	rm -rf ${DESTDIR}${EXAMPLEDIR}
	test -z "${UNITDIR}" || { cd packaging/systemd && for unit in scanwatch*; do rm -f "${DESTDIR}${UNITDIR}/$$unit"; done; \
		rm -f ${DESTDIR}${TMPFILESDIR}/scanwatch.conf; }

deb: all
	sh packaging/deb.sh ${VERSION}

debs:
	for arch in ${DEBARCHS}; do ${MAKE} deb GOARCH=$$arch || exit; done

# Build the source archive, its checksum and distinfo of the port, in dist/.
dist:
	sh packaging/dist.sh ${VERSION}

# List the modules of each program, in dist/.
sbom: filter-scanwatch milter-scanwatch scanwatch
	sh packaging/sbom.sh ${VERSION} ${CYCLONEDX}

# Check for known vulnerabilities. VULNDB=https://vuln.go.dev has the newest reports.
vuln:
	GOTOOLCHAIN=${RELEASEGO} sh packaging/vuln.sh ${GOVULNCHECK} ${VULNDB}

# Build all files of a release in dist/. All changes must be committed.
release: vuln dist
	GOTOOLCHAIN=${RELEASEGO} ${MAKE} debs
	GOTOOLCHAIN=${RELEASEGO} ${MAKE} sbom
	mv opensmtpd-filter-scanwatch_${VERSION}-*.deb dist/
	cd dist && sha256sum --tag *${VERSION}* >SHA256

clean:
	rm -f filter-scanwatch milter-scanwatch scanwatch bench.txt opensmtpd-filter-scanwatch_*.deb
	rm -rf completions cross dist html
