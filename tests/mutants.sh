#!/bin/sh
# Break package filter/smtpd in several ways in turn, and check that TestAnsweredOnce
# or FuzzLines fails each time. Each change omits, repeats or delays an answer. The
# script takes a minute.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
survived=0

# mutant FILE NAME EXPRESSION: test the file as changed by the sed expression.
mutant() {
	sed -E "$3" "filter/smtpd/$1" >"$work/$1"
	if cmp -s "filter/smtpd/$1" "$work/$1"; then
		echo "nothing changed: $2"
		survived=$((survived + 1))
		return
	fi
	printf '{"Replace":{"%s":"%s"}}' "$PWD/filter/smtpd/$1" "$work/$1" >"$work/overlay.json"
	if ! go vet -overlay "$work/overlay.json" ./filter/smtpd >"$work/log" 2>&1; then
		cat "$work/log"
		echo "does not compile: $2"
		survived=$((survived + 1))
	elif timeout 60 go test -overlay "$work/overlay.json" -run '^(TestAnsweredOnce|FuzzLines)$' ./filter/smtpd >"$work/log" 2>&1; then
		echo "SURVIVED: $2"
		survived=$((survived + 1))
	else
		echo "noticed: $2 ($(grep -m1 -oE 'answered [0-9] times|came too late|answers to|panics were logged|deadlock|panic: .*|FuzzLines/[^ ]*' "$work/log" || echo timeout))"
	fi
}

mutant serve.go 'a panic is not answered' 's/if s\.asked \{/if false {/'
mutant serve.go 'what follows a panic is left for later' 's/again = true/again = false/'
mutant serve.go 'an answered request is still owed' '/^	s\.asked = false/d'
mutant serve.go 'a request counts as answered too early' 's/^	s\.asked = true/	s.asked = false/'
mutant serve.go 'unknown phases are not answered' '/^	s\.asked = true/,/^}/s/^	s\.answer\(r\)/	if ev.ID != Unknown { s.answer(r) }/'
mutant serve.go 'a log that panics takes the line with it' 's/_ = safego\.Run\(func\(\) error \{ .*/_ = safego.Stack; _ = (func() error {/; s/^	\}\)$/	})()/'
mutant serve.go 'answers are written twice' '/s\.out = s\.out\[:0\]/d'
mutant serve.go 'holds have no limit' 's/return min\(hold, (t, )?MaxHold\)/return hold/'
mutant serve.go 'the end leaves holds open' '/defer s\.held\.stop\(\)/d'
mutant held.go 'a hold sets no timer' '/heap\.Push/,/^}/s/^	h\.arm\(\)//'
mutant held.go 'the timer is set once only' '/heap\.Pop\(&h\.answers\)\.\(answer\)\.line\)/,/^}/s/^	h\.arm\(\)//'
mutant held.go 'the last due comes first' 's/a\[i\]\.due\.Before\(a\[j\]\.due\)/a[j].due.Before(a[i].due)/'
mutant held.go 'who finds no room is forgotten' 's/return false/return true/'
mutant waiting.go 'a waiting request is dropped' 's/kept = append\(kept, w\)/_ = w/'
mutant waiting.go 'a waiting request has no limit' 's/final \|\| !now\.Before\(w\.due\)/final/'
mutant waiting.go 'the end leaves requests waiting' 's/_ = s\.askAgain\(true\)/_ = s.askAgain/'
mutant waiting.go 'an answered request continues to wait' 's/^	s\.waiters = kept/	_ = kept/'
mutant waiting.go 'a request that finds no room is dropped' 's/return false$/return true/'
mutant line.go 'over-long lines vanish' 's/return line, true, true/return nil, true, false/'
mutant line.go 'the tail of an over-long line is a line' 's/l\.skip = true/l.skip = false/'
mutant event.go 'the token is cut' 's/^	ev\.ID, ev\.name = /	ev.Token >>= 4; ev.ID, ev.name = /'

test "$survived" = 0 || {
	echo "$survived changes survived"
	exit 1
}
