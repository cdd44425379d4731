// Package filter speaks smtpd-filters(7), the protocol between OpenSMTPD and
// its filters: it reads smtpd's lines from one stream, hands them as events to
// a Handler, and writes registrations and answers to another. It knows nothing
// about policy, disks, clocks or DNS.
//
// smtpd ends itself when a filter exits or writes one line it does not expect,
// and hangs a session for ever when an answer is missing. Therefore Serve
// alone writes to the output, answers each request exactly once whatever the
// Handler does, and turns an answer that smtpd would not survive into the
// nearest one that it does.
//
// # Why no answer can be missing
//
//   - A Handler cannot answer, forget to, or do it twice: Decide returns a
//     value, and Serve, which has session and token before it calls Decide,
//     makes the answer. A phase that is not known here is answered, too, and so
//     is a line that is too long, whose head has all that an answer needs.
//   - A request counts as answered when its line has been made, not before. If
//     anything panics until then, the same goroutine lets the client proceed.
//   - What was read together is answered together, before anything more is
//     read: no answer waits for another line.
//   - An answer that is held is a line already. One timer is set whenever a line
//     is kept, for the first that is due; there are at most MaxHeld, none for longer
//     than MaxHold, and the end of input sends all of them. A client that has left
//     changes nothing: smtpd still waits for the answer.
//   - A Handler waits for nothing: what it hands on to disk, log and watchers goes
//     into buffers that are full at some point and never waited for. Locks that it
//     takes are let go of by defer, so that a panic leaves none behind.
//   - No other goroutine can end the process: each is begun by package contain.
//
// The last two are checked in the source, by package contain's tests. If smtpd
// does not read, Serve waits with its answers and reads nothing more, which costs
// smtpd memory and us none: smtpd never waits for a filter to read, so that it
// comes to reading in the end.
package filter
