#!/bin/sh
# Writes modules.inc of the OpenBSD port from go.mod and go.sum: the modules that
# the programs are linked with on OpenBSD, and the go.mod files of the others
# that Go has to see. Run from the project's folder.
set -eu
: "${GO:=go}"

linked=$(GOOS=openbsd GOARCH=amd64 CGO_ENABLED=0 $GO list -deps \
	-f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}}{{end}}{{end}}' ./cmd/... | sort -u)
others=$(awk '$2 ~ /\/go\.mod$/ { sub("/go.mod$", "", $2); print $1, $2 }' go.sum | sort -u |
	grep -vxF "$linked")

# As in the names of files on a module proxy, capitals become "!" and the letter.
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
