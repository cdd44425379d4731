// Package lookup looks up addresses and names in tables in memory. It returns the entry
// of a table that covers an address or a name, the matching rows of the shipped lists,
// or the AS that announces an address.
//
// The package does not depend on sessions or rules and sends no DNS queries. A table
// must be filled by one goroutine. After that it is read-only and safe for concurrent
// use.
package lookup
