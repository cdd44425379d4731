#!/bin/sh
# Print modules.inc of the OpenBSD port from go.mod and go.sum: the modules that the
# programs and the tests need on OpenBSD, and the go.mod files of other modules that
# Go reads. Run it in the top directory.
set -eu
: "${GO:=go}"

linked=$(GOOS=openbsd GOARCH=amd64 CGO_ENABLED=0 $GO list -deps -test \
	-f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}' ./cmd/... ./filter/... ./internal/... ./rules/... ./store/... | sort -u)
others=$(awk '$2 ~ /\/go\.mod$/ { sub("/go.mod$", "", $2); print $1, $2 }' go.sum | sort -u |
	grep -vxF "$linked")

# As in file names of a module proxy, a capital becomes "!" and the lower-case letter.
list() {
	printf '%s =' "$1"
	echo "$2" | awk '{
		name = ""
		for (i = 1; i <= length($1); i++) {
			c = substr($1, i, 1)
			name = name (c ~ /[A-Z]/ ? "!" tolower(c) : c)
		}
		printf " \\\n\t%s %s", name, $2
	}'
	echo
}
echo "# Made by packaging/port.sh from go.mod and go.sum."
list MODGO_MODULES "$linked"
echo
list MODGO_MODFILES "$others"
