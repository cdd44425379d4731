// Package smtpd implements smtpd-filters(7), the protocol between OpenSMTPD and its
// filters. The package reads lines from smtpd, passes them as events to a Handler, and
// writes registrations and responses. It does not depend on policy, disks, clocks or
// DNS.
//
// smtpd exits if a filter exits or writes an unexpected line. Without a response, the
// session hangs forever. Therefore, only Serve writes to the output. Serve sends
// exactly one response to each request, even if the Handler fails. If smtpd cannot
// handle a response, Serve replaces it with the closest valid one.
//
// # Guarantees
//
//   - A Handler cannot omit or repeat a response. Decide returns a value, and Serve
//     writes the response with the session and token of the request. Serve also
//     responds to unknown phases and to truncated lines, whose start contains the
//     session and token.
//   - A request is pending until its response is complete. After a panic, the same
//     goroutine responds to a pending request with proceed.
//   - Serve responds to all lines of one read before it reads again.
//   - A delayed response is a complete line. One timer is set for the first line that
//     is due. At most MaxHeld lines are delayed, and each line for at most MaxHold.
//     Serve sends all delayed lines at the end of input. Serve also sends a delayed
//     response to a disconnected client, because smtpd still waits for the response.
//   - A request that waits for a fact keeps a copy of its line. At most MaxHeld
//     requests wait, each for at most MaxWait. A separate goroutine asks the Handler
//     again; a lock keeps it from running while lines are handled.
//   - A Handler does not block: data for the disk, the log and watchers goes into
//     bounded buffers. Locks are released with defer, even after a panic.
//   - A panic in another goroutine does not end the process: package safego starts
//     each goroutine.
//
// The tests of package safego check the source code for the last two guarantees.
//
// If smtpd does not read responses, Serve blocks in a write and does not read further
// lines. smtpd, which never waits for a filter to read, then buffers its lines.
package smtpd
