#!/bin/sh
# Bootstraps the private Debian roots the tests run real OpenSMTPD servers in.
#
#	tests/roots.sh [ROOT ...]
#
# Without arguments, all of them:
#
#	bookworm   OpenSMTPD 6.8, whose TLS and AUTH do not work (OpenSSL 3)
#	bullseye   OpenSMTPD 6.8 with working TLS and AUTH
#	trixie     OpenSMTPD 7.6
#	sid        OpenSMTPD 7.9 or newer: whatever the suite has at the time
#
# They live in $SCANWATCH_ROOTS, /var/cache/scanwatch-tests unless set, and are
# kept between runs: one that is there is left alone, whatever its age. Remove
# a folder to have it made anew. Needs root and, for a missing root, a network;
# the mirrors are those that apt and debootstrap use by themselves.
set -eu

roots=${SCANWATCH_ROOTS:-/var/cache/scanwatch-tests}
packages='opensmtpd ca-certificates' # smtpd 7 does not start without the latter
user=mailuser                        # gets the mail delivered by the tests

say() { echo "roots: $*"; }
die() {
	echo "roots: $*" >&2
	exit 1
}
now() { date +%s; }

# in_root ROOT COMMAND ...: runs it in ROOT, asking nobody anything.
in_root() {
	in=$1
	shift
	DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$in" "$@"
}

# The clock of a test machine may be past the date until which a Release file
# is valid.
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
		die "missing:$missing, and there is no apt-get to install them with"
	say "installing$missing"
	# shellcheck disable=SC2086 # a list of words
	{ apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y install \
		--no-install-recommends $missing; } >"$roots/tools.log" 2>&1 ||
		die "cannot install$missing (network? see $roots/tools.log)"
}

# complete ROOT: is it usable? Only renaming gives a root its final name, so a
# folder of that name was finished once; the user may be missing in one made
# by hand.
complete() {
	[ -x "$1/usr/sbin/smtpd" ] && [ -s "$1/etc/ssl/certs/ca-certificates.crt" ] &&
		grep -q "^$user:" "$1/etc/passwd"
}

build() {
	suite=$1 final=$roots/$1 tmp=$roots/$1.tmp log=$roots/$1.log
	begin=$(now)
	if [ -d "$final" ]; then
		# Mend in place: nothing in it is unique, and it may be in use.
		tmp=$final
		say "$suite: $final is incomplete, mending it"
	else
		say "$suite: bootstrapping into $final, about half a minute"
		# An interrupted debootstrap leaves these mounted.
		umount "$tmp/proc" "$tmp/sys" 2>/dev/null || :
		rm -rf "$tmp"
		debootstrap --variant=minbase "$suite" "$tmp" >"$log" 2>&1 ||
			die "$suite: debootstrap failed after $(($(now) - begin)) s (network? see $log)"
	fi
	if ! [ -x "$tmp/usr/sbin/smtpd" ] || ! [ -s "$tmp/etc/ssl/certs/ca-certificates.crt" ]; then
		# The packages' scripts must not start a server.
		printf '#!/bin/sh\nexit 101\n' >"$tmp/usr/sbin/policy-rc.d"
		chmod 755 "$tmp/usr/sbin/policy-rc.d"
		# shellcheck disable=SC2086
		{ apt_in "$tmp" update && apt_in "$tmp" install --no-install-recommends $packages &&
			apt_in "$tmp" clean; } >>"$log" 2>&1 ||
			die "$suite: cannot install $packages after $(($(now) - begin)) s (network? see $log)"
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
		# Two at once: the second one waits and finds the work done. A server
		# of the tests holds the same lock while it uses the root.
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
