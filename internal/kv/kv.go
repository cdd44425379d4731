// Package kv defines the rows in which the state is passed between the tables in memory
// and the file on disk.
package kv

// An Entry is one row of a bucket. A nil Value deletes the row.
type Entry struct {
	Bucket     string
	Key, Value []byte
}
