//go:build !audit

package sandbox

func (p Paths) grants() []grant { return p.directories() }
