#!/bin/sh
# Rewrite all golden files: run the tests of each package with the flag -update.
set -eu
grep -rlE 'flag\.Bool\("update"' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
	go test -count=1 -short "$dir" -update
done
