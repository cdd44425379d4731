package engine

import (
	"bytes"
	"log/syslog"
)

// logSocket is the socket of syslogd(8). The sandbox allows access to it, because the
// filter must reconnect when syslogd restarts.
const logSocket = "/dev/log"

// A syslogger writes log lines to syslog(3), with separate priorities. If the filter wrote to
// standard error, smtpd would log every line at priority error.
type syslogger struct{ *syslog.Writer }

func openSyslog(socket, program string) (syslogger, error) {
	w, err := syslog.Dial("unixgram", socket, syslog.LOG_MAIL|syslog.LOG_NOTICE, program)
	return syslogger{w}, err
}

// Write writes lines, each ending with a newline. Errors are ignored, because there is
// nowhere to log them.
func (s syslogger) Write(lines []byte) (int, error) {
	for line := range bytes.Lines(lines) {
		_ = s.priority(line)(string(bytes.TrimSuffix(line, []byte{'\n'})))
	}
	return len(lines), nil
}

// priority returns the function that writes a line at the priority given by its first
// word. Clients cannot influence the first word.
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
