package session

// Left tells what is kept for sessions that are open; all of it is 0 if none is.
func (t *Table) Left() (sessions, sources, bytes int) { return len(t.live), len(t.sources), t.bytes }
