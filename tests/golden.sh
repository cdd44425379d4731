#!/bin/sh
# Rewrite all golden files by running each package's tests with -update.
set -eu
grep -rlE 'flag\.Bool\("update"' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
	go test -count=1 -short "$dir" -update
done
