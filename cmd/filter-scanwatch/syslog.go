package main

import (
	"bytes"
	"log/syslog"
)

// logSocket is the socket of syslogd(8). The sandbox allows access to it, because the
// filter must reconnect after a restart of syslogd.
const logSocket = "/dev/log"

// A syslogger writes log lines to syslog(3) with their priorities. smtpd would log all
// lines that the filter writes to standard error with the priority error.
type syslogger struct{ *syslog.Writer }

func openSyslog(socket string) (syslogger, error) {
	w, err := syslog.Dial("unixgram", socket, syslog.LOG_MAIL|syslog.LOG_NOTICE, "filter-scanwatch")
	return syslogger{w}, err
}

// Write writes lines that end with LF. Errors are ignored, because they cannot be logged.
func (s syslogger) Write(lines []byte) (int, error) {
	for line := range bytes.Lines(lines) {
		_ = s.priority(line)(string(bytes.TrimSuffix(line, []byte{'\n'})))
	}
	return len(lines), nil
}

// priority returns the function that writes a line with the priority that its first word
// indicates. Clients cannot influence the first word.
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
