#!/bin/sh
# Build the Debian package from programs built by make.
#
#	packaging/deb.sh VERSION
#
# Run it in the top directory. The package is reproducible: all files have the
# time of the changelog.
set -eu

package=opensmtpd-filter-scanwatch
from=packaging/debian
version=$(sed -n '1s/.*(\(.*\)).*/\1/p' $from/changelog)
[ "${version%-*}" = "$1" ] || {
	echo "deb: $from/changelog has version $version, the programs have $1" >&2
	exit 1
}
SOURCE_DATE_EPOCH=$(date -d "$(sed -n '/^ -- /{s/.*>  //p;q;}' $from/changelog)" +%s)
export SOURCE_DATE_EPOCH LC_ALL=C
# The programs may be built for a different architecture than this system's.
arch=$(${GO:-go} version -m scanwatch | sed -n 's/.*[[:space:]]GOARCH=//p')
case $arch in
386) arch=i386 ;;
arm) arch=armhf ;;
mips*le) arch=${arch%le}el ;;
ppc64le) arch=ppc64el ;;
esac
arch=${ARCH:-$arch}

umask 022
dest=$(mktemp -d)
trap 'rm -rf "$dest"' EXIT
chmod 755 "$dest"
doc=$dest/usr/share/doc/$package

${MAKE:-make} -s install DESTDIR="$dest" PREFIX=/usr SYSCONFDIR=/etc MANDIR=/usr/share/man \
	LIBEXECDIR=/usr/libexec/opensmtpd EXAMPLEDIR="/usr/share/doc/$package/examples" \
	ZSHDIR=/usr/share/zsh/vendor-completions
gzip -9n "$dest"/usr/share/man/man?/*
# The package has no configuration: dpkg would ask at upgrades whether to replace
# the operator's file.
install -d "$dest/etc/scanwatch"
install -m 644 README.md DECISIONS.md filter/lookup/intel/SOURCES.md "$doc/"
gzip -9nc CHANGES.md >"$doc/changelog.gz"
gzip -9nc $from/changelog >"$doc/changelog.Debian.gz"
sh $from/copyright.sh >"$doc/copyright"
install -D -m 644 $from/lintian-overrides "$dest/usr/share/lintian/overrides/$package"

# List the files before DEBIAN exists.
files=$(cd "$dest" && find . -type f | sed 's,^\./,,' | sort)
size=$(du -sk --apparent-size "$dest" | cut -f1)
mkdir "$dest/DEBIAN"
sed "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" $from/control >"$dest/DEBIAN/control"
install -m 644 $from/triggers "$dest/DEBIAN/"
install -m 755 $from/postinst $from/prerm $from/postrm "$dest/DEBIAN/"
(cd "$dest" && echo "$files" | xargs md5sum) >"$dest/DEBIAN/md5sums"

find "$dest" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group --threads-max=1 -Zxz --build "$dest" "${package}_${version}_$arch.deb"
