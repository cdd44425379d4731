// Package milter is the front end for mail servers that use the milter protocol, such
// as Postfix and Sendmail. It implements the protocol itself, because no client of the
// socket may be able to crash the process.
//
// The front end asks for neither headers nor message text, and never changes a message.
//
// The milter protocol does not show the following, which is therefore not evidence:
//
//   - failed logins; a successful login is known only from MAIL onwards
//   - whether the client greeted with HELO or EHLO
//   - lines that the server itself rejects, such as MAIL with invalid syntax and, in
//     Postfix, HTTP
//   - commands before the server's greeting, the pace of commands, and pipelining
//   - how a session ended
//   - whether the server ultimately accepts a message: a message counts as accepted
//     once the server has received it
//   - in Sendmail, recipients for which relaying is denied
package milter
