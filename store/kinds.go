package store

// Kinds is a set of step kinds.
type Kinds uint32

// AllKinds is the set of all kinds, including future kinds.
const AllKinds = ^Kinds(0)

// KindsOf returns the set of the given kinds.
func KindsOf(kinds ...Kind) (set Kinds) {
	for _, k := range kinds {
		set |= 1 << k
	}
	return set
}

// Has reports whether k is in the set.
func (s Kinds) Has(k Kind) bool { return s == AllKinds || s&(1<<k) != 0 }
