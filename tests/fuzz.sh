#!/bin/sh
# Run each fuzz target for $FUZZTIME, which is a number of inputs such as 5000x (the
# default), or a duration such as 1m.
set -eu

# fuzz PACKAGE TARGET: run one target. Only a failing input counts as a failure. If
# FUZZTIME is a duration, go test may also end with "context deadline exceeded",
# because a worker on a busy machine does not stop in time.
fuzz() {
	log=$(mktemp)
	status=0
	go test -run '^$' -fuzz "^$2\$" -fuzztime "${FUZZTIME:-5000x}" "$1" >"$log" 2>&1 || status=1
	if [ $status = 1 ] && ! grep -q 'Failing input written' "$log" &&
		grep -q '^ *context deadline exceeded' "$log"; then
		status=0
	fi
	if [ $status = 0 ]; then
		tail -n 1 "$log"
	else
		cat "$log"
	fi
	rm -f "$log"
	return $status
}

go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r package; do
	go test -list '^Fuzz' "$package" | grep '^Fuzz' | while read -r target; do
		echo "$package $target"
		fuzz "$package" "$target"
	done
done
