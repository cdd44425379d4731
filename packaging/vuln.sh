#!/bin/sh
# Check the programs for known vulnerabilities in the modules and in Go.
#
#	packaging/vuln.sh GOVULNCHECK VULNDB
#
# VULNDB is a version of the module with the reports, or a URL such as
# https://vuln.go.dev. GOTOOLCHAIN selects the Go to check.
set -eu
: "${GO:=go}"

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
GOTOOLCHAIN=local GOBIN=$tools $GO install "$1"
case $2 in
*://*) db=$2 ;;
*) db=file://$($GO mod download -json "$2" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')/data/osv ;;
esac
for system in linux openbsd; do
	echo "$system, $($GO env GOVERSION), $2"
	GOOS=$system CGO_ENABLED=0 "$tools/govulncheck" -db "$db" ./cmd/...
done
