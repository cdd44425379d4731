// Package kv defines the rows of state that package memory exchanges with the store.
package kv

// An Entry is a row in a bucket; a nil Value deletes the row.
type Entry struct {
	Bucket     string
	Key, Value []byte
}
