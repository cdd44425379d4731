#!/bin/sh
# List the licence files of Go and of all modules in the programs on the given
# systems: a line has the name of the module and the path of a file. Run it in the
# top directory.
#
#	packaging/licences.sh GOOS ...
set -eu
: "${GO:=go}"

format='{{with .Module}}{{if not .Main}}{{.Path}} {{$.ImportPath}} {{$.Dir}}{{end}}{{end}}'
packages=$(for os; do
	GOOS=$os CGO_ENABLED=0 $GO list -deps -f "$format" ./cmd/filter-scanwatch ./cmd/milter-scanwatch ./cmd/scanwatch
done | LC_ALL=C sort -u)

# Go has the same licence as its modules. Some systems install Go without it.
root=$($GO env GOROOT)
[ -e "$root/LICENSE" ] || root=$(echo "$packages" | sed -n 's,^golang.org/x/sys golang.org/x/sys/unix \(.*\)/unix$,\1,p')

# A licence may apply to only part of a module: search the directories from each
# package up to the top of its module. A line has the module, the directory, and "top"
# for the last of these directories.
dirs=$(
	echo "Go $root top"
	echo "$packages" | awk '{
		top = substr($3, 1, length($3) - length($2) + length($1))
		for (dir = $3; dir != top; sub("/[^/]*$", "", dir)) print $1, dir
		print $1, top, "top"
	}' | LC_ALL=C sort -u
)
list=$(echo "$dirs" | cut -d' ' -f2 | xargs sh -c 'find "$@" -maxdepth 1 -type f' find |
	grep -Ei '/(licen[cs]e|copying|notice|patents)[^/]*$' | LC_ALL=C sort |
	awk -v dirs="$dirs" '
		BEGIN {
			n = split(dirs, lines, "\n")
			for (i = 1; i <= n; i++) {
				split(lines[i], word, " ")
				module[word[2]] = word[1]
				if (word[3]) top[word[1]] = word[2]
			}
		}
		{
			dir = $0
			sub("/[^/]*$", "", dir)
			print module[dir], $0
			found[dir] = 1
		}
		END {
			for (name in top) if (!(top[name] in found)) {
				print "licences: " name ": no licence in " top[name] | "cat >&2"
				failed = 1
			}
			exit failed
		}')
echo "$list" | LC_ALL=C sort -s -k1,1
