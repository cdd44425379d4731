#!/bin/sh
# Unpack programs for tests that cannot be installed together, such as two mail
# servers, or that would start a daemon. The programs come from the Debian archive
# and are unpacked into $SCANWATCH_ROOTS/consumers. The default of SCANWATCH_ROOTS is
# /var/cache/scanwatch-tests.
#
#	tests/consumers.sh           for the tests
#	tests/consumers.sh trixie    Postfix and Sendmail of another version of Debian, in
#	                             the directory consumers of the root that
#	                             tests/roots.sh creates, for long tests
set -eu
roots=${SCANWATCH_ROOTS:-/var/cache/scanwatch-tests}

# unpack DIR: unpack the packages in DIR/debs into DIR.
unpack() {
	for deb in "$1"/debs/*.deb; do
		dpkg -x "$deb" "$1"
	done
	# The loader ignores LD_LIBRARY_PATH for programs with setuid or setgid bits.
	chmod -R a-s "$1/usr"
	rm -rf "$1/debs"
}

for suite; do
	dir=$roots/$suite/consumers
	[ ! -d "$dir" ] || continue
	[ -x "$roots/$suite/usr/bin/apt-get" ] || { echo "consumers: $roots/$suite does not exist; run tests/roots.sh first" >&2 && exit 1; }
	mkdir -p "$dir.tmp/debs/partial"
	# The packages conflict with each other and with opensmtpd.
	for packages in postfix "sendmail-bin sendmail-cf"; do
		# shellcheck disable=SC2086 # a list of words
		DEBIAN_FRONTEND=noninteractive chroot "$roots/$suite" apt-get -q -y install --download-only --no-install-recommends \
			-o Dir::Cache::archives=/consumers.tmp/debs -o Acquire::Check-Valid-Until=false $packages >/dev/null
	done
	rm -rf "$dir.tmp/debs/partial"
	unpack "$dir.tmp"
	mv "$dir.tmp" "$dir"
	echo "consumers: in $dir"
done
[ $# -eq 0 ] || exit 0

dir=$roots/consumers
[ -x "$dir/usr/sbin/exim4" ] && exit 0
mkdir -p "$dir.tmp/debs"
cd "$dir.tmp/debs"
packages="exim4-daemon-light libidn12 libgnutls-dane0 libunbound8 postfix sendmail-bin sendmail-cf crowdsec sshguard rspamd \
	libhyperscan5 libluajit2-5.1-2 libluajit-5.1-common libunwind8 libsodium23 libglib2.0-0 libpcre2-8-0 \
	libwrap0 libnsl2 libtirpc3 libldap-2.5-0 libsasl2-2 libdb5.3 liblockfile1 libicu72 libsqlite3-0"
# shellcheck disable=SC2086 # a list of words
apt-get -q download $packages >/dev/null || { apt-get -q update && apt-get -q download $packages; } >/dev/null
unpack "$dir.tmp"
rm -rf "$dir" # an earlier run may have left it
mv "$dir.tmp" "$dir"
echo "consumers: in $dir"
