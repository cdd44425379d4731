#!/bin/sh
# Print distinfo of the OpenBSD port: the hash and size of the source archive and of
# the modules in modules.inc. Run it in the top directory.
#
#	packaging/distinfo.sh ARCHIVE
#
# The archive does not contain distinfo, because distinfo contains its hash.
set -eu
: "${GO:=go}"
export LC_ALL=C

sh tests/downloads.sh >/dev/null

cache=$($GO env GOMODCACHE)/cache/download
{
	echo "${1##*/} $1"
	awk -v cache="$cache" '
		/^MODGO_/ { zip = /^MODGO_MODULES/ }
		/^\t/ {
			name = $1 "/@v/" $2
			if (zip) print "go_modules/" name ".zip", cache "/" name ".zip"
			print "go_modules/" name ".mod", cache "/" name ".mod"
		}' ports/mail/opensmtpd-filter-scanwatch/modules.inc
} | sort | while read -r name file; do
	hash=$(openssl dgst -sha256 -binary "$file" | openssl base64)
	echo "SHA256 ($name) = $hash"
	echo "SIZE ($name) = $(wc -c <"$file" | tr -d ' ')"
done | sort -s -k 1,1
