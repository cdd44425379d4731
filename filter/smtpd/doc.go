// Package smtpd implements smtpd-filters(7), the protocol between OpenSMTPD and its filters. The
// package reads lines from smtpd and passes them to a Handler as events. The package writes
// registrations and responses. The package does not depend on policies, disks, clocks or DNS.
//
// smtpd exits if a filter exits or writes an unexpected line. If a response is missing, the session
// hangs forever. For these reasons, only Serve writes to the output, and it sends exactly one
// response to each request, even if the Handler fails. If smtpd cannot handle a response, Serve
// replaces it with the closest valid one.
//
// # Guarantees
//
//   - A Handler cannot omit or repeat a response. Decide only returns a value, and Serve
//     writes the response with the session and token of the request. Serve also responds
//     to unknown phases and to truncated lines. The start of a truncated line contains the
//     session and token.
//   - A request is pending until its response is complete. After a panic, the same
//     goroutine answers a pending request with proceed.
//   - Serve responds to all lines that it has read before it reads again.
//   - A delayed response is always a complete line. A single timer is set to the time of
//     the first delayed response. At most MaxHeld responses are delayed, and each for at
//     most MaxHold. At the end of input, Serve sends all delayed responses. Serve also sends
//     delayed responses to clients that have disconnected, because smtpd still waits for
//     them.
//   - A request that waits for a fact keeps a copy of its line. At most MaxHeld requests
//     wait, and each for at most MaxWait. A separate goroutine asks the Handler again. A
//     lock prevents it from running while lines are handled.
//   - A Handler does not block. Data for the disk, the log and watchers is written to
//     bounded buffers. Locks are released with defer, even after a panic.
//   - A panic in another goroutine does not end the process, because package safego starts
//     every goroutine.
//
// The tests of package safego check the source code for the last two guarantees.
//
// If smtpd does not read responses, Serve blocks in a write and reads no further lines. smtpd then
// keeps its lines in memory, because it never waits for a filter.
package smtpd
