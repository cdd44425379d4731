// Package lookup answers what the world says about an address or a name:
// which of many prefixes, names or patterns cover it, what the shipped lists of
// scanners, clouds, bots and honest senders know of it, and which network
// announces it.
//
// It knows nothing of sessions and rules, keeps no state between questions and
// asks nobody: every answer comes from memory. Tables are filled by one
// goroutine and from then on only read, by as many as like.
package lookup
