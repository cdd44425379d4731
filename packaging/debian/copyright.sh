#!/bin/sh
# Print the copyright file: the licence of the project and the licences of all
# linked modules, from the module cache. Run it in the top directory.
set -eu
: "${GO:=go}"

cat <<END
opensmtpd-filter-scanwatch comes from the project scanwatch:
https://example.org/scanwatch

It is distributed under the ISC licence:

END
sed 's/^\(.\)/    \1/' LICENSE
echo
echo "The table of AS numbers is made from data of Route Views (https://www.routeviews.org),"
echo "IP Geolocation by DB-IP (https://db-ip.com) and the NRO (https://www.nro.net),"
echo "each under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)."
echo
echo "The programs contain code of these projects, under these licences."
go=$($GO env GOROOT)
{
	echo "Go $go"
	for program in scanwatch filter-scanwatch milter-scanwatch; do
		$GO version -m $program | awk '$1 == "dep" { print $2 }'
	done | sort -u | while read -r module; do
		$GO list -m -f '{{.Path}} {{.Dir}}' "$module"
	done
} | while read -r name dir; do
	file=$(find "$dir" -maxdepth 1 -iname 'license*' | sort | head -n 1)
	[ -n "$file" ] || {
		echo "copyright: $name: no licence in $dir" >&2
		exit 1
	}
	printf '\n%s\n\n' "$name"
	if grep -q '^ *Version 2.0, January 2004' "$file"; then # in /usr/share/common-licenses
		echo "    Copyright by its authors. It is distributed under the Apache License,"
		echo "    version 2.0, whose text is in /usr/share/common-licenses/Apache-2.0."
		continue
	fi
	# One project offers a choice and includes the GPL: this package uses the
	# other licence.
	sed '/^Full text of gpl/ { s,.*,    Its text is in /usr/share/common-licenses/GPL-2.,; q; }; s/^\(.\)/    \1/' "$file"
done
