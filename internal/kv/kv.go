// Package kv defines the row of state that the tables in memory and the file on disk
// exchange.
package kv

// An Entry is one row of a bucket. A nil Value deletes the row.
type Entry struct {
	Bucket     string
	Key, Value []byte
}
