// Package kv defines the row in which state is exchanged between the tables that
// hold it and the file that keeps it.
package kv

// An Entry is one row of a bucket. A nil Value deletes the row.
type Entry struct {
	Bucket     string
	Key, Value []byte
}
