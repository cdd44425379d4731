// Package milter is the front end for mail servers with the milter protocol, such as
// Postfix and Sendmail. It has its own reader of the protocol, because a client of the
// socket must not be able to end the process.
//
// The front end asks for neither headers nor message text, and never changes a message.
//
// Not known from milter, and therefore no evidence:
//
//   - failed logins. A successful login is known from MAIL on
//   - lines that the server rejects itself, such as MAIL with bad syntax or, in Postfix,
//     HTTP. Sendmail reports them as unknown commands
//   - commands before the greeting of the server, and pipelining
//   - how a session ended
//   - whether the server accepts a message in the end. A message counts as accepted when
//     the server has received it
//   - in Sendmail, recipients for which relaying is denied
package milter
