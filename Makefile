# Plain targets; each is a command anyone can paste. GNU make and BSD make.

VERSION = 0.1.0
PREFIX = /usr/local
BINDIR = ${PREFIX}/bin
# Where the programs look for scanwatch.conf is settled when they are made: give
# SYSCONFDIR to "make" and to "make install".
SYSCONFDIR = /etc
EXAMPLEDIR = ${PREFIX}/share/examples/scanwatch
BASHDIR = ${PREFIX}/share/bash-completion/completions
ZSHDIR = ${PREFIX}/share/zsh/site-functions
FISHDIR = ${PREFIX}/share/fish/vendor_completions.d
# smtpd looks for filters in one folder only: /usr/local/libexec/smtpd on OpenBSD,
# /usr/libexec/opensmtpd on Debian whatever the prefix is.
LIBEXECDIR != case $$(uname) in OpenBSD) echo ${PREFIX}/libexec/smtpd ;; Linux) echo /usr/libexec/opensmtpd ;; *) echo ${PREFIX}/libexec/opensmtpd ;; esac
MANDIR != case $$(uname) in *BSD) echo ${PREFIX}/man ;; *) echo ${PREFIX}/share/man ;; esac
GO = go
FUZZTIME = 60s
# The same sources and the same Go give the same bytes, in whatever folder.
GOBUILD = CGO_ENABLED=0 ${GO} build -trimpath -buildvcs=false \
	-ldflags "-s -w -X main.version=${VERSION} -X scanwatch/cmd/internal/config.sysconfdir=${SYSCONFDIR}"
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT = golang.org/x/perf/cmd/benchstat@latest

all: filter-scanwatch scanwatch completions

# go build knows itself what is up to date.
.PHONY: all filter-scanwatch scanwatch test test-short race check fuzz mutants bench bench-code bench-filters golden man html roots demo completions install uninstall cross deb clean

filter-scanwatch:
	${GOBUILD} -o filter-scanwatch ./cmd/filter-scanwatch

scanwatch:
	${GOBUILD} -o scanwatch ./cmd/scanwatch

# A program for another system does not run here; go run makes one that does.
completions: scanwatch
	@mkdir -p completions
	@for shell in bash zsh fish; do \
		./scanwatch completion $$shell > completions/$$shell 2>/dev/null || \
		GOOS= GOARCH= ${GO} run ./cmd/scanwatch completion $$shell > completions/$$shell || exit; done

# Both programs for every system that OpenSMTPD is packaged for, in cross/.
cross:
	for os in linux openbsd freebsd netbsd; do for arch in amd64 arm64; do \
		GOOS=$$os GOARCH=$$arch; export GOOS GOARCH; echo $$os/$$arch; \
		${GOBUILD} -o cross/$$os-$$arch/ ./cmd/filter-scanwatch ./cmd/scanwatch || exit; done; done

# Everything, with the three real smtpd versions (root; some minutes the first
# time, when their private Debian systems are made).
test: roots man
	${GO} test -count=1 ./...

# All but the real servers.
test-short:
	${GO} test -count=1 -short ./...

race:
	${GO} test -race -short ./...

check:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w"; exit 1; }
	${GO} vet ./... && ${GO} vet -tags others ./tests
	GOOS=openbsd ${GO} vet ./cmd/... ./filter/... ./rules/... ./store/...
	GOOS=openbsd GOARCH=arm64 ${GO} vet ./cmd/...
	GOARCH=386 ${GO} vet ./cmd/... ./filter/... ./rules/... ./store/...
	${GO} run ${STATICCHECK} ./...

fuzz:
	FUZZTIME=${FUZZTIME} sh tests/fuzz.sh

# That a missing answer would be noticed.
mutants:
	sh tests/mutants.sh

bench: bench-code bench-filters

bench-code:
	${GO} test -run '^$$' -bench . -benchmem -count 10 ./filter/... ./rules/... ./store/... | tee bench.txt
	${GO} run ${BENCHSTAT} bench.txt

# What it costs, next to other filters and on a real server, and the goals.
# Takes half an hour; BENCHFLAGS="-parts speed -pairs 3" for less.
bench-filters:
	${GO} run ./tests/bench ${BENCHFLAGS}

# Rewrite the golden files; look at the difference before committing it.
golden:
	sh tests/golden.sh

# That a manual of another program is not installed here is no fault of ours.
man:
	@if command -v mandoc >/dev/null; then \
		faults=$$(mandoc -Tlint -Wstyle man/*.[58] | grep -v 'referenced manual not found'); \
		test -z "$$faults" || { echo "$$faults"; exit 1; }; echo "manuals are clean"; \
	else echo "SKIP: mandoc is not installed, manuals are not checked"; test -z "$$SCANWATCH_NO_SKIP"; fi

html:
	@mkdir -p html
	cp man/manual.css html/
	cd man && for page in *.[58]; do \
		mandoc -Thtml -O "style=manual.css,man=%N.%S.html;https://man.openbsd.org/%N.%S" \
			$$page > ../html/$$page.html || exit; done

roots:
	sh tests/roots.sh

demo: all
	sh tests/demo.sh

# Programs that are there are copied as they are: the one who installs may have
# no Go, or not in his path. No configuration is installed: none is needed.
install:
	@test -x filter-scanwatch -a -x scanwatch -a -f completions/fish || { echo "run make first"; exit 1; }
	install -d ${DESTDIR}${BINDIR} ${DESTDIR}${LIBEXECDIR} ${DESTDIR}${MANDIR}/man5 ${DESTDIR}${MANDIR}/man8
	install -m 755 scanwatch ${DESTDIR}${BINDIR}/
	install -m 755 filter-scanwatch ${DESTDIR}${LIBEXECDIR}/
	install -m 644 man/scanwatch.conf.5 ${DESTDIR}${MANDIR}/man5/
	install -m 644 man/filter-scanwatch.8 man/scanwatch.8 ${DESTDIR}${MANDIR}/man8/
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
	install -m 644 completions/bash ${DESTDIR}${BASHDIR}/scanwatch
	install -m 644 completions/zsh ${DESTDIR}${ZSHDIR}/_scanwatch
	install -m 644 completions/fish ${DESTDIR}${FISHDIR}/scanwatch.fish

# The configuration and the records stay.
uninstall:
	rm -f ${DESTDIR}${BINDIR}/scanwatch ${DESTDIR}${LIBEXECDIR}/filter-scanwatch
	rm -f ${DESTDIR}${MANDIR}/man5/scanwatch.conf.5 ${DESTDIR}${MANDIR}/man8/filter-scanwatch.8 ${DESTDIR}${MANDIR}/man8/scanwatch.8
	rm -f ${DESTDIR}${BASHDIR}/scanwatch ${DESTDIR}${ZSHDIR}/_scanwatch ${DESTDIR}${FISHDIR}/scanwatch.fish
	rm -rf ${DESTDIR}${EXAMPLEDIR}

deb: all
	sh packaging/deb.sh ${VERSION}

clean:
	rm -f filter-scanwatch scanwatch bench.txt opensmtpd-filter-scanwatch_*.deb
	rm -rf completions cross html
