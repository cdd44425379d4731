// Package lookup finds addresses and names in in-memory tables: table files, the
// shipped lists, and the ASes that announce addresses.
//
// The package knows nothing about sessions and rules, and sends no DNS queries. Only
// one goroutine may fill a table. A filled table is read-only and safe for concurrent
// use.
package lookup
