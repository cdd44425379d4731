#!/bin/sh
# Print the copyright file: the licence of the project and the licences of Go and
# all linked modules. Run it in the top directory.
set -eu

cat <<END
opensmtpd-filter-scanwatch comes from the project scanwatch:
https://example.org/scanwatch

It is distributed under the ISC licence:

END
sed 's/^\(.\)/    \1/' LICENSE
echo
echo "The table of AS numbers is made from data of Route Views (https://www.routeviews.org),"
echo "IP Geolocation by DB-IP (https://db-ip.com) and the NRO (https://www.nro.net),"
echo "each under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)."
echo
echo "The programs contain code of Go and of these modules, under these licences."
list=$(sh packaging/licences.sh linux)
echo "$list" | while read -r module file; do
	printf '\n%s %s\n\n' "$module" "${file##*/}"
	# The texts of common licences are in the directory common-licenses. One project
	# offers a choice and includes the GPL: this package uses the other licence.
	awk -v dir="    Its text is in /usr/share/common-licenses/" '
		/^ *Apache License$/ { print "    Apache License, Version 2.0\n" dir "Apache-2.0."; skip = 1 }
		/^Full text of gpl/ { print dir "GPL-2."; exit }
		!skip { print /./ ? "    " $0 : "" }
		/END OF TERMS AND CONDITIONS/ { skip = 0 }' "$file"
done
