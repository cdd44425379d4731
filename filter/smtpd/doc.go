// Package smtpd implements smtpd-filters(7), the protocol between OpenSMTPD and its
// filters. It reads lines from smtpd, passes them as events to a Handler, and writes
// registrations and responses. It does not depend on policy, disks, clocks or DNS.
//
// smtpd exits when a filter exits or writes an unexpected line. If a response is
// missing, the session hangs forever. Therefore only Serve writes to the output. It
// sends exactly one response to each request, regardless of the Handler. It replaces a
// response that smtpd cannot handle with the most similar valid response.
//
// # Guarantees
//
//   - A Handler cannot omit or repeat a response: Decide returns a value, and Serve
//     writes the response with the session and token of the request. Serve also
//     responds to unknown phases and to truncated lines, whose head contains the
//     session and token.
//   - A request is pending until its response is complete. If a panic occurs before
//     that, the same goroutine responds with proceed.
//   - Serve responds to all lines of one read before the next read.
//   - A delayed response is a complete line. One timer is set for the first line that
//     is due. There are at most MaxHeld lines, each for at most MaxHold. All are sent
//     at the end of input. A delayed response is also sent if the client has
//     disconnected, because smtpd still waits for it.
//   - A request that waits for a fact has a copy of its line. There are at most MaxHeld
//     such requests, each waits for at most MaxWait, and one goroutine asks the Handler
//     again. A lock excludes that goroutine while lines are handled.
//   - A Handler does not block: data for the disk, the log and watchers goes into
//     bounded buffers. Locks are released with defer, also after a panic.
//   - A panic in another goroutine does not end the process: package safego starts
//     each goroutine.
//
// The tests of package safego check the last two guarantees in the source. If smtpd
// does not read responses, Serve blocks in a write and reads no further lines. smtpd
// buffers these lines, because it never waits for a filter to read.
package smtpd
