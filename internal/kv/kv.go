// Package kv defines the rows of state that package memory exchanges with the store.
package kv

// An Entry is a row of a bucket. A nil Value deletes the row.
type Entry struct {
	Bucket     string
	Key, Value []byte
}
