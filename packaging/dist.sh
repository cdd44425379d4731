#!/bin/sh
# Build the source archive of the last commit with all modules, its checksum, and
# distinfo of the OpenBSD port, in the directory dist.
#
#	packaging/dist.sh VERSION
#
# Run it in the top directory of a repository. The archive is reproducible: all
# files have the time of the commit. It needs GNU tar.
set -eu
: "${GO:=go}" "${TAR:=tar}"
name=scanwatch-$1 file=scanwatch-$1.tar.gz
export LC_ALL=C

[ -z "$(git status --porcelain)" ] || {
	echo "dist: the archive would not contain the changes that git status lists; commit them first" >&2
	exit 1
}
time=$(git log -1 --format=%ct)
umask 022
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
git archive --prefix="$name/" HEAD | $TAR -xf - -C "$tmp"
(
	cd "$tmp/$name"
	$GO mod vendor
	# The systems of make cross.
	sh packaging/licences.sh linux openbsd freebsd netbsd >"$tmp/licences"
	echo "The programs contain code of Go and of these modules, under these licences."
	while read -r module licence; do
		printf '\n==> %s %s\n\n' "$module" "${licence##*/}"
		cat "$licence"
	done <"$tmp/licences"
) >"$tmp/LICENSES"
mv "$tmp/LICENSES" "$tmp/$name/"
mkdir -p dist
$TAR --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mode=u+w,go-w \
	--mtime="@$time" -C "$tmp" -cf - "$name" | gzip -9n >"dist/$file"

# Both sha256(1) of OpenBSD and sha256sum check this format.
hash=$(openssl dgst -sha256 -r "dist/$file")
echo "SHA256 ($file) = ${hash%% *}" >dist/SHA256
{
	echo "SHA256 ($file) = $(openssl dgst -sha256 -binary "dist/$file" | openssl base64)"
	echo "SIZE ($file) = $(wc -c <"dist/$file" | tr -d ' ')"
} >dist/distinfo
echo "dist/$file"
