#!/bin/bash
# Install the Debian package in a copy of a private Debian system, send a message
# through smtpd with the filter, then upgrade, remove and purge the package.
#
#	unshare -mnpf --kill-child tests/packaging/deb.sh ROOT PACKAGE NEWER SCRATCH [CONF ...]
#
# ROOT does not change, because an overlay writes all changes to the directory
# SCRATCH. NEWER is a package with a higher version. Each CONF is an smtpd
# configuration to check.
set -euo pipefail
lower=$1 package=$2 newer=$3 scratch=$4
shift 4
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
has() { in_root dpkg-query -W -f '${Version}' $name; }

printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
echo mx.example.org >"$root/etc/mailname"
rm -rf "$root/var/spool/smtpd" "$root/var/lib/scanwatch"

cp "$package" "$root/tmp/package.deb"
# A host with another mail server lacks the user opensmtpd. If smtpd is installed
# later, the package then creates the state directory.
cp "$root/etc/passwd" "$scratch/passwd"
sed -i '/^opensmtpd:/d' "$root/etc/passwd"
in_root dpkg -i /tmp/package.deb >"$scratch/dpkg.log" 2>&1 || die "install: $(cat "$scratch/dpkg.log")"
[ ! -e "$root/var/lib/scanwatch" ] || die "a state directory without its user"
grep '^_sw' "$root/etc/passwd" >>"$scratch/passwd"
cp "$scratch/passwd" "$root/etc/passwd"
in_root dpkg-trigger --by-package=opensmtpd /usr/sbin/smtpd || die "trigger"
in_root dpkg --triggers-only -a >>"$scratch/dpkg.log" 2>&1 || die "trigger: $(cat "$scratch/dpkg.log")"
[ "$(in_root stat -c '%U %a' /var/lib/scanwatch)" = "opensmtpd 750" ] || die "owner or mode of the state directory"
version=$(has)
[ "$(in_root scanwatch -V)" = "scanwatch ${version%-*}" ] || die "scanwatch -V prints $(in_root scanwatch -V)"
in_root zcat /usr/share/man/man8/scanwatch.8.gz | grep -x "\.Os scanwatch ${version%-*}" >/dev/null || die "the manual has another version"
# The services run as users of the package.
users=$(sed -n 's/^User=//p' "$root"/lib/systemd/system/scanwatch*.service "$root"/usr/lib/systemd/system/scanwatch*.service 2>/dev/null | sort -u)
for user in $users; do
	in_root getent passwd "$user" >/dev/null || die "no user $user"
done
[ -n "$users" ] || die "the package has no services"
# The filter needs no configuration, but the README creates one.
[ -z "$(find "$root/etc/scanwatch" -type f)" ] || die "the package has a configuration"

# The example, with an existing interface and a new certificate.
sed 's/\<eth0\>/lo/' "$root/usr/share/doc/$name/examples/smtpd.conf" >"$root/etc/smtpd.conf"
mkdir -p "$root/etc/ssl/private"
in_root openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=mx.example.org \
	-keyout /etc/ssl/private/mx.example.org.key -out /etc/ssl/mx.example.org.crt 2>/dev/null
chmod 600 "$root/etc/ssl/private/mx.example.org.key"
in_root smtpd -n -f /etc/smtpd.conf >"$scratch/smtpd.log" 2>&1 || die "smtpd rejects the example"

# Only OpenBSD has the interface group egress. Some examples have no rule, which
# smtpd requires.
mkdir -p "$root/etc/mail"
echo alice@example.com >"$root/etc/mail/recipients"
for conf; do
	sed 's/\<egress\>/lo/' "$conf" >"$root/tmp/smtpd.conf"
	echo 'match from local for local reject' >>"$root/tmp/smtpd.conf"
	in_root smtpd -n -f /tmp/smtpd.conf >"$scratch/smtpd.log" 2>&1 || die "smtpd rejects $(cat "$conf")"
done

# start: start smtpd and wait until it listens and its filter has opened the state. The
# caller limits the time.
start() {
	(exec chroot "$root" /usr/sbin/smtpd -d -f /etc/smtpd.conf) >"$scratch/smtpd.log" 2>&1 </dev/null &
	smtpd=$!
	until { exec 3<>/dev/tcp/127.0.0.1/25; } 2>/dev/null; do alive; done
	exec 3>&-
	until in_root scanwatch status >/dev/null 2>&1; do alive; done
}
alive() { kill -0 $smtpd 2>/dev/null || die "smtpd has ended"; }
stop() {
	kill $smtpd
	wait $smtpd || true
}
answer() {
	local line
	while IFS= read -r line <&3; do
		[[ $line == ???' '* ]] && break
	done
	[[ $line == $1* ]] || die "the server answers ${line@Q} to $2"
}
# mail N: send a message and wait until N messages are recorded.
mail() {
	exec 3<>/dev/tcp/127.0.0.1/25
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
	until [ "$(in_root scanwatch dump | grep -c '"rcpt_ok":1')" = "$1" ]; do
		alive
		in_root scanwatch flush
	done
}
# filter: print the version of the running filter.
filter() { in_root scanwatch status | sed -n 's/^filter *version \([^,]*\),.*/\1/p'; }

start
mail 1
until [ -n "$(find "$root/home/mailuser/Maildir/new" -type f 2>/dev/null)" ]; do alive; done
stop
say "mail was delivered and recorded"

# Create a policy as in the README, then upgrade under a running smtpd.
in_root sh -c 'scanwatch policy --print standard >/etc/scanwatch/scanwatch.conf' || die "policy --print"
echo '# changed by the operator' >>"$root/etc/scanwatch/scanwatch.conf"
in_root scanwatch check >/dev/null || die "check"
cp "$root/etc/scanwatch/scanwatch.conf" "$scratch/before.conf"
start
mail 2
old=$(filter) was=$(has)
cp "$newer" "$root/tmp/newer.deb"
in_root dpkg -i /tmp/newer.deb </dev/null >"$scratch/dpkg.log" 2>&1 || die "upgrade: $(cat "$scratch/dpkg.log")"
[ "$(has)" != "$was" ] || die "$was was not upgraded"
grep -q 'restart' "$scratch/dpkg.log" || die "the upgrade does not mention the restart of smtpd: $(cat "$scratch/dpkg.log")"
cmp "$scratch/before.conf" "$root/etc/scanwatch/scanwatch.conf" || die "the upgrade changed the configuration"
[ -z "$(find "$root/etc/scanwatch" -name '*.dpkg-*')" ] || die "the upgrade left a second configuration"
[ "$(filter)" = "$old" ] || die "the upgrade restarted the filter"
mail 3
stop
start
in_root scanwatch fsck >"$scratch/smtpd.log" 2>&1 || die "fsck after the upgrade"
[ "$(filter)" != "$old" ] || die "the filter is $old after the restart"
mail 4
stop
say "upgraded from $was to $(has)"

# Enable a service from the package and one of the operator's units.
wants=$root/etc/systemd/system/multi-user.target.wants
mkdir -p "$wants"
ln -s /usr/lib/systemd/system/scanwatch-sync@.service "$wants/scanwatch-sync@nftables.service"
ln -s /lib/systemd/system/scanwatch-serve.service "$wants/scanwatch-serve.service"
ln -s /etc/systemd/system/scanwatch-postfix.path "$wants/scanwatch-postfix.path"
# The lines from milter-scanwatch(8), and a comment.
mkdir -p "$root/etc/postfix" "$root/etc/mail"
printf 'smtpd_milters = { unix:scanwatch/milter.sock,\n    default_action=accept, command_timeout=30s }\n' >"$root/etc/postfix/main.cf"
echo '# smtpd_milters = unix:scanwatch/milter.sock' >"$root/etc/postfix/master.cf"
echo 'Xscanwatch, S=unix:/run/scanwatch/milter.sock, T=S:30s;R:30s' >"$root/etc/mail/sendmail.cf"
in_root dpkg -r $name >"$scratch/dpkg.log" 2>&1 || die "remove: $(cat "$scratch/dpkg.log")"
grep -q 'still names filter-scanwatch' "$scratch/dpkg.log" || die "no warning about the filter in smtpd.conf"
[ "$(grep -o '/etc/[^ ]* still names the milter' "$scratch/dpkg.log" | cut -d' ' -f1 | xargs)" = "/etc/postfix/main.cf /etc/mail/sendmail.cf" ] ||
	die "no warnings about the milter: $(cat "$scratch/dpkg.log")"
[ -e "$root/etc/scanwatch/scanwatch.conf" ] || die "the removal deleted the configuration"
[ -e "$root/var/lib/scanwatch/state.db" ] || die "the removal deleted the records"
[ "$(ls "$wants" | grep scanwatch)" = scanwatch-postfix.path ] || die "enabled after the removal: $(ls "$wants")"
left=$(in_root dpkg -L $name | grep -v '^/etc' | while read -r file; do [ -f "$root$file" ] && echo "$file"; done || true)
[ -z "$left" ] || die "files after the removal: $left"
mkdir -p "$root/var/lib/scanwatch-follow-postfix" "$root/var/lib/scanwatch-feeds" "$root/var/lib/scanwatch-forward"
# The records may be on a separate file system.
rm -r "$root/var/lib/scanwatch"
mkdir "$root/var/lib/scanwatch"
mount -t tmpfs none "$root/var/lib/scanwatch"
mkdir "$root/var/lib/scanwatch/sessions"
touch "$root/var/lib/scanwatch/state.db" "$root/var/lib/scanwatch/sessions/.hidden"
in_root dpkg -P $name >"$scratch/dpkg.log" 2>&1 || die "purge: $(cat "$scratch/dpkg.log")"
[ -z "$(ls -A "$root/var/lib/scanwatch")" ] || die "files remain in the mounted directory: $(ls -A "$root/var/lib/scanwatch")"
umount "$root/var/lib/scanwatch"
rmdir "$root/var/lib/scanwatch"
for file in /etc/scanwatch /var/lib/scanwatch /var/lib/scanwatch-feeds /var/lib/scanwatch-forward \
	/var/lib/scanwatch-follow-postfix /run/scanwatch; do
	[ ! -e "$root$file" ] || die "$file remains after the purge"
done
say "removed and purged"
