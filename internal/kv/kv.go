// Package kv defines the rows of the state that memory and the store exchange.
package kv

// An Entry is one row of a bucket. A nil Value deletes the row.
type Entry struct {
	Bucket     string
	Key, Value []byte
}
