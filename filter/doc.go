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
package filter
