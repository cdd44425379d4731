package main

import (
	"fmt"
	"strings"
	"time"

	"scanwatch/cmd/internal/config"
	"scanwatch/cmd/internal/sandbox"
	"scanwatch/rules"
)

// diskPatience is how long smtpd is kept waiting for the directories that the
// sandbox is to leave open. One on a disk that hangs must not hang the mail
// server: the sandbox is closed when the disk answers.
const diskPatience = time.Second

// enterSandbox takes from the process what it does not need with these settings
// and this configuration, and tells what it is.
func (p *policies) enterSandbox(set rules.Settings) {
	paths := sandbox.Paths{State: set.Store, Events: set.Events, Look: []string{config.DefaultFile()}}
	if p.config != nil {
		paths.Read = p.config.Files()
	}
	_, _ = time.Now().Zone() // reads the file of the time zone, now or never
	done := make(chan struct{})
	go func() {
		defer close(done)
		report := sandbox.Enter(paths)
		p.closed.Store(report)
		for _, err := range report.Problems {
			p.log.Warn("the sandbox is not whole", "error", err)
		}
		tell := p.log.Info
		if len(report.By) == 0 {
			tell = p.log.Warn
		}
		tell("sandbox", report.Attrs()...)
	}()
	select {
	case <-done:
	case <-time.After(diskPatience):
		p.log.Warn("the disk of the state directory or of the configuration does not answer; the sandbox waits for it")
	}
}

// sandbox tells status what is in force.
func (p *policies) sandbox(open bool) string {
	if open {
		return "none, because of -S"
	}
	report := p.closed.Load()
	if report == nil {
		return "none yet: the disk does not answer"
	}
	var words []string
	for _, a := range report.Attrs() {
		words = append(words, fmt.Sprint(a))
	}
	return strings.Join(words, " ")
}
