// Package milter is the front end for mail servers that use the milter protocol, such as Postfix
// and Sendmail. The package implements the protocol itself, so that no client of the socket can
// crash the process.
//
// The front end requests neither headers nor message text, and never changes a message.
//
// The milter protocol does not report the following facts. The absence of these facts is therefore
// not evidence:
//
//   - failed logins; a successful login is reported only from MAIL onwards
//   - whether the client greeted with HELO or EHLO
//   - lines that the server rejects itself, such as MAIL commands with invalid syntax and,
//     in Postfix, HTTP requests
//   - commands before the server's greeting, the timing of commands, and pipelining
//   - how a session ended
//   - whether the server finally accepts a message; the filter counts a message as
//     accepted when the server has received it
//   - recipients that Sendmail rejects because relaying is denied
package milter
