// Package milter is the front end for mail servers with the milter protocol, such as
// Postfix and Sendmail. It has its own reader of the protocol, because a client of the
// socket must not be able to end the process.
//
// The front end asks for neither headers nor message text, and never changes a message.
//
// The following is unknown from milter, and therefore no evidence:
//
//   - failed logins; a successful login is known from MAIL on
//   - whether the client greeted with HELO or EHLO
//   - lines that the server rejects itself, such as MAIL with bad syntax and, in Postfix, HTTP
//   - commands before the greeting of the server, the pace of commands, and pipelining
//   - how a session ended
//   - whether the server accepts a message in the end: a message counts as accepted when the
//     server has received it
//   - in Sendmail, recipients for which relaying is denied
package milter
