package main

import (
	"bytes"
	"log/syslog"
)

// logSocket is the socket of syslogd(8), which the sandbox leaves accessible because a
// restarted syslogd requires a new connection.
const logSocket = "/dev/log"

// A syslogger writes log lines to syslog(3) with their priorities. smtpd would log them
// all with the priority error.
type syslogger struct{ *syslog.Writer }

func openSyslog(socket string) (syslogger, error) {
	w, err := syslog.Dial("unixgram", socket, syslog.LOG_MAIL|syslog.LOG_NOTICE, "filter-scanwatch")
	return syslogger{w}, err
}

// Write writes lines that end with LF. An error cannot be logged, and is ignored.
func (s syslogger) Write(lines []byte) (int, error) {
	for line := range bytes.Lines(lines) {
		_ = s.priority(line)(string(bytes.TrimSuffix(line, []byte{'\n'})))
	}
	return len(lines), nil
}

// priority returns the function that writes line. A line begins with a word of this
// program.
func (s syslogger) priority(line []byte) func(string) error {
	for _, p := range []struct {
		begin string
		write func(string) error
	}{
		{"level=ERROR ", s.Err}, {"level=WARN ", s.Warning}, {"warning: ", s.Warning},
		{"level=INFO ", s.Info}, {"session decision=proceed ", s.Info}, {"finding ", s.Info},
	} {
		if bytes.HasPrefix(line, []byte(p.begin)) {
			return p.write
		}
	}
	return s.Notice
}
