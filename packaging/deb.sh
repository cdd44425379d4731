#!/bin/sh
# Makes the Debian package from the programs that make has made.
#
#	packaging/deb.sh VERSION
#
# Run from the project's folder. The same programs give the same bytes: the time
# of all files is that of the changelog.
set -eu

package=opensmtpd-filter-scanwatch
from=packaging/debian
version=$(sed -n '1s/.*(\(.*\)).*/\1/p' $from/changelog)
[ "${version%-*}" = "$1" ] || {
	echo "deb: $from/changelog is of version $version, the programs of $1" >&2
	exit 1
}
SOURCE_DATE_EPOCH=$(date -d "$(sed -n '/^ -- /{s/.*>  //p;q;}' $from/changelog)" +%s)
export SOURCE_DATE_EPOCH LC_ALL=C
arch=${ARCH:-$(dpkg --print-architecture)}

umask 022
dest=$(mktemp -d)
trap 'rm -rf "$dest"' EXIT
chmod 755 "$dest"
doc=$dest/usr/share/doc/$package

${MAKE:-make} -s install DESTDIR="$dest" PREFIX=/usr SYSCONFDIR=/etc MANDIR=/usr/share/man \
	LIBEXECDIR=/usr/libexec/opensmtpd EXAMPLEDIR="/usr/share/doc/$package/examples" \
	ZSHDIR=/usr/share/zsh/vendor-completions
gzip -9n "$dest"/usr/share/man/man?/*
# The configuration is the administrator's. One of ours would ask whether it may
# replace his with each upgrade that changes it.
install -d "$dest/etc/scanwatch"
install -m 644 README.md DECISIONS.md filter/lookup/intel/SOURCES.md "$doc/"
gzip -9nc CHANGES.md >"$doc/changelog.gz"
gzip -9nc $from/changelog >"$doc/changelog.Debian.gz"
sh $from/copyright.sh >"$doc/copyright"
install -D -m 644 $from/lintian-overrides "$dest/usr/share/lintian/overrides/$package"

# Before DEBIAN is there, so that its files are not in it.
files=$(cd "$dest" && find . -type f | sed 's,^\./,,' | sort)
size=$(du -sk --apparent-size "$dest" | cut -f1)
mkdir "$dest/DEBIAN"
sed "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" $from/control >"$dest/DEBIAN/control"
install -m 755 $from/postinst $from/prerm $from/postrm "$dest/DEBIAN/"
(cd "$dest" && echo "$files" | xargs md5sum) >"$dest/DEBIAN/md5sums"

find "$dest" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group --threads-max=1 -Zxz --build "$dest" "${package}_${version}_$arch.deb"
