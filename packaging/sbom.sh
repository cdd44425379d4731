#!/bin/sh
# Build a software bill of materials for each program, in the directory dist. It lists
# the program's modules and Go version in the format CycloneDX.
#
#	packaging/sbom.sh VERSION CYCLONEDX
#
# Run it in the top directory after make. CYCLONEDX is a version of cyclonedx-gomod.
# Licence detection is disabled, because some of its results are wrong.
set -eu
: "${GO:=go}"

mkdir -p dist
for program in filter-scanwatch milter-scanwatch scanwatch; do
	file=dist/$program-$1.cdx.json
	$GO run "$2" bin -json -std -noserial -notimestamp -version "v$1" -output "$file" $program
	linked=$($GO version -m $program | awk '
		NR == 1 { print "std@" $2 }
		$1 == "dep" { print $2 "@" $3 }' | LC_ALL=C sort)
	listed=$(sed -n 's,^      "bom-ref": "pkg:golang/\(.*\)?type=module"\,$,\1,p' "$file" | LC_ALL=C sort)
	[ "$listed" = "$linked" ] || {
		printf 'sbom: %s lists other modules than %s:\n%s\n' "$file" $program "$listed" >&2
		exit 1
	}
	echo "$file: $(echo "$linked" | wc -l) components"
done
