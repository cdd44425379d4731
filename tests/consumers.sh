#!/bin/sh
# Unpack the programs that the tests in tests/export run but that cannot be
# installed together, such as two mail servers, or that would start a daemon. They
# come from the archive of Debian and go to $SCANWATCH_ROOTS/consumers. The default
# of SCANWATCH_ROOTS is /var/cache/scanwatch-tests.
set -eu
dir=${SCANWATCH_ROOTS:-/var/cache/scanwatch-tests}/consumers
[ -x "$dir/usr/sbin/exim4" ] && exit 0
mkdir -p "$dir.tmp/debs"
cd "$dir.tmp/debs"
packages="exim4-daemon-light libidn12 libgnutls-dane0 libunbound8 postfix sendmail-bin sendmail-cf crowdsec sshguard rspamd \
	libhyperscan5 libluajit2-5.1-2 libluajit-5.1-common libunwind8 libsodium23 libglib2.0-0 libpcre2-8-0 \
	libwrap0 libnsl2 libtirpc3 libldap-2.5-0 libsasl2-2 libdb5.3 liblockfile1 libicu72 libsqlite3-0"
# shellcheck disable=SC2086 # a list of words
apt-get -q download $packages >/dev/null || { apt-get -q update && apt-get -q download $packages; } >/dev/null
for deb in *.deb; do
	dpkg -x "$deb" "$dir.tmp"
done
# The loader ignores LD_LIBRARY_PATH for programs with setuid or setgid bits.
chmod -R a-s "$dir.tmp/usr"
rm -rf "$dir.tmp/debs"
rm -rf "$dir" # it may be older
mv "$dir.tmp" "$dir"
echo "consumers: in $dir"
