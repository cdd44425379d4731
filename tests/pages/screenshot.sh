#!/bin/sh
# Create docs/report.png, the screenshot in README.md, from a month of simulated mail
# (tests/month) with a running filter. Run the script in the top directory. The script
# needs Chromium.
set -eu

dir=$(mktemp -d "${TMPDIR:-/tmp}/scanwatch-page.XXXXXX")
chmod 755 "$dir"
filter=
trap '[ -z "$filter" ] || kill "$filter"; rm -rf "$dir"' EXIT

for program in filter-scanwatch scanwatch; do
	go build -o "$dir/$program" "./cmd/$program"
done
go build -o "$dir/demo" ./tests/pages/demo
(cd "$dir" && ./demo -dir .)

# Run a filter without sessions, so that the page shows its status.
mkfifo "$dir/smtpd"
(cd "$dir" && exec ./filter-scanwatch -f scanwatch.conf <smtpd >/dev/null 2>log) &
filter=$!
exec 3>"$dir/smtpd"
printf 'config|%s\n' 'smtpd-version|7.9.0-portable' 'protocol|0.7' 'smtp-session-timeout|300' 'subsystem|smtp-in' ready >&3
until "$dir/scanwatch" -f "$dir/scanwatch.conf" status >/dev/null 2>&1; do
	kill -0 "$filter" || {
		cat "$dir/log"
		exit 1
	}
done
"$dir/scanwatch" -f "$dir/scanwatch.conf" report --since 7d --html "$dir/page.html"

chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars \
	--blink-settings=preferredColorScheme=1 --user-data-dir="$dir/chromium" --window-size=1280,1860 \
	--screenshot="$dir/page.png" "file://$dir/page.html" 2>/dev/null
"$dir/demo" -shrink "$dir/page.png" >docs/report.png
ls -l docs/report.png
