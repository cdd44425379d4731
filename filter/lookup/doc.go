// Package lookup finds addresses and names in in-memory tables: table files, the
// shipped lists, and the ASes that announce addresses.
//
// The package knows nothing about sessions and rules, and sends no DNS queries. A table
// must be filled by a single goroutine. Once filled, it is read-only and safe for
// concurrent use.
package lookup
