#!/bin/bash
# Installs the Debian package in a copy of a private Debian system, sends a mail
# through smtpd with the filter, removes and purges the package.
#
#	unshare -mnpf --kill-child tests/pack/deb.sh ROOT PACKAGE SCRATCH [CONF ...]
#
# ROOT is only read: what happens is in SCRATCH, a folder, under an overlay.
# Each CONF is a configuration of smtpd that is checked as well.
set -euo pipefail
lower=$1 package=$2 scratch=$3
shift 3
name=opensmtpd-filter-scanwatch

say() { echo "deb: $*"; }
die() {
	echo "deb: $*" >&2
	[ -s "$scratch/smtpd.log" ] && sed 's/^/	/' "$scratch/smtpd.log" >&2
	exit 1
}

mount -t tmpfs none "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
root=$scratch/root
mount -t overlay -o "lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work" none "$root"
ip link set lo up
in_root() { LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }

printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
echo mx.example.org >"$root/etc/mailname"
rm -rf "$root/var/spool/smtpd" "$root/var/lib/scanwatch"

cp "$package" "$root/tmp/package.deb"
in_root dpkg -i /tmp/package.deb >"$scratch/dpkg.log" 2>&1 || die "install: $(cat "$scratch/dpkg.log")"
[ "$(in_root stat -c '%U %a' /var/lib/scanwatch)" = "opensmtpd 750" ] || die "the state directory is not as it should be"
in_root scanwatch -V | grep -Eqx 'scanwatch [0-9.]+' || die "scanwatch -V"
in_root scanwatch check >/dev/null || die "the configuration of the package has faults"

# The sample, on an interface that is here, with a certificate of its own.
sed 's/\<eth0\>/lo/' "$root/usr/share/doc/$name/examples/smtpd.conf" >"$root/etc/smtpd.conf"
mkdir -p "$root/etc/ssl/private"
in_root openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=mx.example.org \
	-keyout /etc/ssl/private/mx.example.org.key -out /etc/ssl/mx.example.org.crt 2>/dev/null
chmod 600 "$root/etc/ssl/private/mx.example.org.key"
in_root smtpd -n -f /etc/smtpd.conf >"$scratch/smtpd.log" 2>&1 || die "smtpd does not take the sample configuration"

# The interface group egress is OpenBSD's, and some examples are about filters
# only: smtpd wants a rule as well.
mkdir -p "$root/etc/mail"
echo alice@example.com >"$root/etc/mail/recipients"
for conf; do
	sed 's/\<egress\>/lo/' "$conf" >"$root/tmp/smtpd.conf"
	echo 'match from local for local reject' >>"$root/tmp/smtpd.conf"
	in_root smtpd -n -f /tmp/smtpd.conf >"$scratch/smtpd.log" 2>&1 || die "smtpd does not take $(cat "$conf")"
done

(exec chroot "$root" /usr/sbin/smtpd -d -f /etc/smtpd.conf) >"$scratch/smtpd.log" 2>&1 </dev/null &
smtpd=$!
# Until it listens; whoever runs this sets a limit.
until { exec 3<>/dev/tcp/127.0.0.1/25; } 2>/dev/null; do
	kill -0 $smtpd 2>/dev/null || die "smtpd has ended"
done
answer() {
	local line
	while IFS= read -r line <&3; do
		[[ $line == ???' '* ]] && break
	done
	[[ $line == $1* ]] || die "the server answers ${line@Q} to $2"
}
answer 220 "the connection"
for command in "250 EHLO client.example.net" "250 MAIL FROM:<alice@example.net>" \
	"250 RCPT TO:<mailuser@example.org>" "354 DATA"; do
	printf '%s\r\n' "${command#* }" >&3
	answer "${command%% *}" "${command#* }"
done
printf 'Subject: package\r\n\r\nhello\r\n.\r\n' >&3
answer 250 "the message"
printf 'QUIT\r\n' >&3
answer 221 QUIT
exec 3>&-

in_root scanwatch flush || die "scanwatch flush"
until in_root scanwatch dump | grep -q '"rcpt_ok":1'; do
	kill -0 $smtpd 2>/dev/null || die "smtpd has ended"
	in_root scanwatch flush
done
until [ -n "$(find "$root/home/mailuser/Maildir/new" -type f 2>/dev/null)" ]; do
	kill -0 $smtpd 2>/dev/null || die "smtpd has ended"
done
kill $smtpd
wait $smtpd || true
say "mail was delivered and recorded"

in_root dpkg -r $name >"$scratch/dpkg.log" 2>&1 || die "remove: $(cat "$scratch/dpkg.log")"
grep -q 'still names filter-scanwatch' "$scratch/dpkg.log" || die "no warning that smtpd.conf names the filter"
[ -e "$root/etc/scanwatch/scanwatch.conf" ] || die "the configuration is gone after the removal"
[ -e "$root/var/lib/scanwatch/state.db" ] || die "the records are gone after the removal"
left=$(in_root dpkg -L $name | grep -v '^/etc' | while read -r file; do [ -f "$root$file" ] && echo "$file"; done || true)
[ -z "$left" ] || die "left after the removal: $left"
in_root dpkg -P $name >"$scratch/dpkg.log" 2>&1 || die "purge: $(cat "$scratch/dpkg.log")"
[ ! -e "$root/etc/scanwatch/scanwatch.conf" ] && [ ! -e "$root/var/lib/scanwatch" ] || die "the purge leaves something"
say "removed and purged"
