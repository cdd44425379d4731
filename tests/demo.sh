#!/bin/sh
# The demo runs a real OpenSMTPD with the filter, plays various sessions and prints
# the report. Without root or debootstrap, it replays recorded streams. Run the
# script in the top directory after `make all`.
set -eu

dir=$(mktemp -d "${TMPDIR:-/tmp}/scanwatch-demo.XXXXXX")
chmod 755 "$dir"
state=$dir/state

# These commands show the records. The demo may run them in its namespace.
show='
session=$(./scanwatch -s "$state" dump --evidence botnet-helo | sed -n "1s/.*\"session\":\"\([0-9a-f]*\)\".*/\1/p")
echo
echo "\$ scanwatch report --since 2020-01-01"
./scanwatch -s "$state" report --since 2020-01-01
echo
echo "\$ scanwatch show $session"
./scanwatch -s "$state" show "$session"
'
export state

if [ "$(id -u)" = 0 ] && sh tests/roots.sh trixie; then
	go build -o "$dir/demo" ./tests/demo
	"$dir/demo" -filter "$PWD/filter-scanwatch" -dir "$dir" -then "
		echo
		echo 'The filter logged:'
		echo
		sed -n 's/^scanwatch: /  /p' '$dir/smtpd.log' | fold -s -w 78
		$show"
	rm -f "$dir/demo"
else
	echo "A real OpenSMTPD needs root, and a network for a private Debian system."
	echo "Playing recorded streams of OpenSMTPD 7.9 instead:"
	mkdir "$state"
	for stream in ehlo-delivery bad-helo harvest-50-unknown relay-probe ssh-banner http-get \
		tls-clienthello-on-plain pipelined auth-on-port-25 auth-submission rdns-variants ipv6; do
		echo "  $stream"
		./filter-scanwatch -s "$state" <"tests/streams/7.9/$stream.in" >/dev/null 2>>"$dir/smtpd.log"
	done
	sh -eu -c "$show"
fi

echo
echo "The demo has ended. The state is in $state. Try"
echo "  ./scanwatch -s $state dump | head -3"
echo "  ./scanwatch -s $state report --json"
