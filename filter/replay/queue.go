package replay

import "scanwatch/store"

// A waiting is a record that waits to be replayed.
type waiting struct {
	store.Record
	seq   uint64
	bytes int
}

// byStart is a heap of records. The records are ordered by the start of their sessions, and then by
// the order of calls to Add.
type byStart []*waiting

func (h byStart) Len() int { return len(h) }
func (h byStart) Less(i, j int) bool {
	if c := h[i].Start.Compare(h[j].Start); c != 0 {
		return c < 0
	}
	return h[i].seq < h[j].seq
}
func (h byStart) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *byStart) Push(x any)   { *h = append(*h, x.(*waiting)) }
func (h *byStart) Pop() any     { return pop((*[]*waiting)(h)) }

// byTime is a heap of open sessions. The sessions are ordered by the time of their next step.
type byTime []*playback

func (h byTime) Len() int { return len(h) }
func (h byTime) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].out.Seq < h[j].out.Seq
}
func (h byTime) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *byTime) Push(x any)   { *h = append(*h, x.(*playback)) }
func (h *byTime) Pop() any     { return pop((*[]*playback)(h)) }

func pop[T any](h *[]*T) *T {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return x
}
