// Package lookup looks up addresses and names in tables in memory. The results are
// entries of tables, rows of the shipped lists, and the AS that announces an address.
//
// The package does not depend on sessions or rules, and sends no DNS queries. A table
// must be filled by one goroutine. A filled table is read-only and safe for concurrent
// use.
package lookup
