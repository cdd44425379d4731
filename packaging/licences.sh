#!/bin/sh
# List the licence files of Go and of all modules in the programs on the given
# systems: a line has the name of the module and the path of a file. Run it in the
# top directory.
#
#	packaging/licences.sh GOOS ...
set -eu
: "${GO:=go}"

files() { find "$1" -maxdepth 1 -type f | grep -Ei '/(licen[cs]e|copying|notice|patents)[^/]*$' | LC_ALL=C sort; }

format='{{with .Module}}{{if not .Main}}{{.Path}} {{$.ImportPath}} {{$.Dir}}{{end}}{{end}}'
packages=$(for os; do
	GOOS=$os CGO_ENABLED=0 $GO list -deps -f "$format" ./cmd/filter-scanwatch ./cmd/milter-scanwatch ./cmd/scanwatch
done | LC_ALL=C sort -u)

# Go has the same licence as its modules. Some systems install Go without it.
root=$($GO env GOROOT)
[ -e "$root/LICENSE" ] || root=$(echo "$packages" | sed -n 's,^golang.org/x/sys golang.org/x/sys/unix \(.*\)/unix$,\1,p')
files "$root" | sed 's/^/Go /'

# A licence may apply to only part of a module: search the directories from each
# package up to the top of its module.
echo "$packages" | while read -r module package dir; do
	top=${dir%"${package#"$module"}"}
	[ -n "$(files "$top")" ] || {
		echo "licences: $module: no licence in $top" >&2
		exit 1
	}
	while :; do
		files "$dir" | sed "s,^,$module ,"
		[ "$dir" != "$top" ] || break
		dir=${dir%/*}
	done
done | LC_ALL=C sort -u
