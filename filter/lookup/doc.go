// Package lookup finds addresses and names in memory. It returns the covering
// prefix, name or pattern, the matching rows of the shipped lists, or the network
// that announces an address.
//
// The package does not depend on sessions or rules and sends no DNS queries. One
// goroutine fills a table. After that the table is read-only and safe for concurrent
// use.
package lookup
