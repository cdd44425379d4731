#!/bin/sh
# Download the modules and the Go that the tests need, so that the tests need no
# network: the modules of go.mod, the go.mod files in go.sum, and the oldest Go that
# builds the project. Run it in the top directory.
set -eu
: "${GO:=go}"

$GO mod download
# shellcheck disable=SC2046 # a list of modules
$GO list -m $(awk '{ sub("/go.mod$", "", $2); print $1 "@" $2 }' go.sum | sort -u) >/dev/null
GOTOOLCHAIN=go$(sed -n 's/^go //p' go.mod) $GO version
