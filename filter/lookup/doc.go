// Package lookup finds addresses and names in tables in memory. There are tables from files, the
// shipped lists, and databases of the ASes that announce addresses.
//
// The package does not depend on sessions or rules, and sends no DNS queries. Only one goroutine
// may fill a table. After that, the table is read-only and safe for concurrent use.
package lookup
