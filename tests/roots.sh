#!/bin/sh
# Create the private Debian roots in which the tests run real OpenSMTPD servers.
#
#	tests/roots.sh [ROOT ...]
#
# By default, all roots are created:
#
#	bookworm   OpenSMTPD 6.8, whose TLS and AUTH do not work (OpenSSL 3)
#	bullseye   OpenSMTPD 6.8 with working TLS and AUTH
#	trixie     OpenSMTPD 7.6, and Valkey 8
#	sid        OpenSMTPD 7.9 or newer, as in the archive
#
# The roots are in $SCANWATCH_ROOTS; the default is /var/cache/scanwatch-tests.
# Existing roots are kept; remove a directory to create it again. The script needs
# root, and the network if a root is missing. It uses the default mirrors of apt and
# debootstrap.
set -eu

roots=${SCANWATCH_ROOTS:-/var/cache/scanwatch-tests}
packages='opensmtpd ca-certificates' # smtpd 7 requires the latter
user=mailuser                        # the tests deliver mail to this user

say() { echo "roots: $*"; }
die() {
	echo "roots: $*" >&2
	exit 1
}
now() { date +%s; }

# in_root ROOT COMMAND ...: run a command in ROOT without questions.
in_root() {
	in=$1
	shift
	DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$in" "$@"
}

# According to a test machine's clock, a Release file may have expired.
apt_in() {
	in=$1
	shift
	in_root "$in" apt-get -q -y -o Acquire::Check-Valid-Until=false "$@"
}

tools() {
	missing=
	command -v debootstrap >/dev/null || missing="$missing debootstrap"
	command -v ip >/dev/null || missing="$missing iproute2"
	[ -n "$missing" ] || return 0
	command -v apt-get >/dev/null ||
		die "missing:$missing; install them or apt-get"
	say "installing$missing"
	# shellcheck disable=SC2086 # a list of words
	{ apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install \
		--no-install-recommends $missing; } >"$roots/tools.log" 2>&1 ||
		die "cannot install$missing (network? see $roots/tools.log)"
}

# extra SUITE: print the additional packages of a root. Each has a program of the same name.
extra() {
	[ "$1" != trixie ] || echo valkey-server
}

# complete ROOT: succeed if a root is usable. This script renames a root to its final
# name only when it is complete, but a root from another source may lack the user.
complete() {
	for more in $(extra "${1##*/}"); do
		[ -x "$1/usr/bin/$more" ] || return
	done
	[ -x "$1/usr/sbin/smtpd" ] && [ -s "$1/etc/ssl/certs/ca-certificates.crt" ] &&
		grep -q "^$user:" "$1/etc/passwd"
}

build() {
	suite=$1 final=$roots/$1 tmp=$roots/$1.tmp log=$roots/$1.log
	begin=$(now)
	if [ -d "$final" ]; then
		# Repair it in place, because it may be in use.
		tmp=$final
		say "$suite: $final is incomplete, repairing it"
	else
		say "$suite: bootstrapping into $final, about half a minute"
		# An interrupted debootstrap does not unmount these.
		umount "$tmp/proc" "$tmp/sys" 2>/dev/null || :
		rm -rf "$tmp"
		debootstrap --variant=minbase "$suite" "$tmp" >"$log" 2>&1 ||
			die "$suite: debootstrap failed after $(($(now) - begin)) s (network? see $log)"
	fi
	if ! complete "$tmp"; then
		all="$packages $(extra "$suite")"
		# Package scripts must not start a server.
		printf '#!/bin/sh\nexit 101\n' >"$tmp/usr/sbin/policy-rc.d"
		chmod 755 "$tmp/usr/sbin/policy-rc.d"
		# shellcheck disable=SC2086
		{ apt_in "$tmp" update && apt_in "$tmp" install --no-install-recommends $all &&
			apt_in "$tmp" clean; } >>"$log" 2>&1 ||
			die "$suite: cannot install $all after $(($(now) - begin)) s (network? see $log)"
	fi
	grep -q "^$user:" "$tmp/etc/passwd" ||
		in_root "$tmp" useradd -m -s /bin/sh "$user" >>"$log" 2>&1 ||
		die "$suite: cannot add the user $user (see $log)"
	[ "$tmp" = "$final" ] || mv "$tmp" "$final"
	rm -f "$log"
	say "$suite: done in $(($(now) - begin)) s"
}

root() {
	suite=$1
	if ! complete "$roots/$suite"; then
		# If two processes need the same root, the second process waits for the
		# first. A server in a test holds the same lock.
		exec 9>"$roots/$suite.lock"
		flock -n 9 || {
			say "$suite: another process builds or uses it, waiting"
			flock 9
		}
		complete "$roots/$suite" || build "$suite" 9>&-
		exec 9>&-
	fi
	say "$suite: $(in_root "$roots/$suite" dpkg-query -W -f '${Package} ${Version}' opensmtpd) in $roots/$suite"
}

[ $# -gt 0 ] || set -- bookworm bullseye trixie sid
for suite; do
	case $suite in
	bookworm | bullseye | trixie | sid) ;;
	*) die "unknown root $suite (there are bookworm, bullseye, trixie, sid)" ;;
	esac
done
[ "$(id -u)" = 0 ] || die "needs root, to make the roots with chroot and mknod"
mkdir -p "$roots" || die "cannot make $roots (set SCANWATCH_ROOTS to another folder)"
tools
for suite; do
	root "$suite"
done
