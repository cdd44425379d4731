# Plain targets; each is a command anyone can paste. GNU make and BSD make.

VERSION = 0.1.0
PREFIX = /usr/local
BINDIR = ${PREFIX}/bin
MANDIR = ${PREFIX}/man
# smtpd looks for filters here: /usr/local/libexec/smtpd on OpenBSD,
# /usr/libexec/opensmtpd on Debian.
LIBEXECDIR = ${PREFIX}/libexec/smtpd
GO = go
FUZZTIME = 60s
GOBUILD = CGO_ENABLED=0 ${GO} build -trimpath -ldflags "-s -w -X main.version=${VERSION}"
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT = golang.org/x/perf/cmd/benchstat@latest

all: filter-scanwatch scanwatch

# go build knows itself what is up to date.
.PHONY: all filter-scanwatch scanwatch test test-short race check fuzz bench golden man roots demo install clean

filter-scanwatch:
	${GOBUILD} -o filter-scanwatch ./cmd/filter-scanwatch

scanwatch:
	${GOBUILD} -o scanwatch ./cmd/scanwatch

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
	${GO} vet ./...
	GOOS=openbsd ${GO} vet ./cmd/... ./filter/... ./rules/... ./store/...
	GOOS=openbsd GOARCH=arm64 ${GO} vet ./cmd/...
	GOARCH=386 ${GO} vet ./cmd/... ./filter/... ./rules/... ./store/...
	${GO} run ${STATICCHECK} ./...

fuzz:
	FUZZTIME=${FUZZTIME} sh tests/fuzz.sh

bench:
	${GO} test -run '^$$' -bench . -benchmem -count 10 ./filter/... ./rules/... ./store/... | tee bench.txt
	${GO} run ${BENCHSTAT} bench.txt

# Rewrite the golden files; look at the difference before committing it.
golden:
	sh tests/golden.sh

# That a manual of another program is not installed here is no fault of ours.
man:
	@if command -v mandoc >/dev/null; then \
		faults=$$(mandoc -Tlint -Wstyle man/*.[58] | grep -v 'referenced manual not found'); \
		test -z "$$faults" || { echo "$$faults"; exit 1; }; echo "manuals are clean"; \
	else echo "SKIP: mandoc is not installed, manuals are not checked"; test -z "$$SCANWATCH_NO_SKIP"; fi

roots:
	sh tests/roots.sh

demo: all
	sh tests/demo.sh

# Programs that are there are copied as they are: the one who installs may have
# no Go, or not in his path.
install:
	@test -x filter-scanwatch -a -x scanwatch || { echo "run make first"; exit 1; }
	install -d ${DESTDIR}${BINDIR} ${DESTDIR}${LIBEXECDIR} ${DESTDIR}${MANDIR}/man5 ${DESTDIR}${MANDIR}/man8
	install -m 755 scanwatch ${DESTDIR}${BINDIR}/
	install -m 755 filter-scanwatch ${DESTDIR}${LIBEXECDIR}/
	install -m 644 man/scanwatch.conf.5 ${DESTDIR}${MANDIR}/man5/
	install -m 644 man/filter-scanwatch.8 man/scanwatch.8 ${DESTDIR}${MANDIR}/man8/

clean:
	rm -f filter-scanwatch scanwatch bench.txt
