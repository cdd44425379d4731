#!/bin/sh
# Runs each fuzz target for $FUZZTIME (10s unless set).
set -eu

# On a busy machine go test may fail because a worker did not stop in time when
# the time was over ("context deadline exceeded"), which is no finding: a
# finding names the input. Only then it is tried once more.
fuzz() {
	log=$(mktemp)
	if go test -run '^$' -fuzz "^$2\$" -fuzztime "${FUZZTIME:-10s}" "$1" >"$log" 2>&1; then
		tail -n 2 "$log"
		rm -f "$log"
		return
	fi
	cat "$log"
	if grep -q 'Failing input written' "$log" || ! grep -q '^ *context deadline exceeded' "$log"; then
		rm -f "$log"
		return 1
	fi
	rm -f "$log"
	echo "again: $1 $2"
	go test -run '^$' -fuzz "^$2\$" -fuzztime "${FUZZTIME:-10s}" "$1"
}

go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r package; do
	go test -list '^Fuzz' "$package" | grep '^Fuzz' | while read -r target; do
		echo "$package $target"
		fuzz "$package" "$target"
	done
done
