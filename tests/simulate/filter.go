package simulate

import (
	"scanwatch/filter"
	"scanwatch/filter/smtpd"
)

// A Filter is a pipeline with its front end for smtpd.
type Filter struct {
	*filter.Pipeline
	*smtpd.FrontEnd
}

// NewFilter returns a Filter with the same parts as the program.
func NewFilter(o filter.Options) *Filter {
	p := filter.New(o)
	return &Filter{p, smtpd.NewFrontEnd(p)}
}

// Stop stops the front end and the pipeline, as the program does when smtpd stops.
func (f *Filter) Stop() {
	f.FrontEnd.Stop()
	f.Pipeline.Stop()
}
