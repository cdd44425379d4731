package control

import (
	"context"
	"fmt"
	"log/slog"
)

// A Level is how much the filter logs.
type Level struct {
	Word  string
	Means string
	slog.Level
}

// Levels are all there are.
func Levels() []Level {
	return []Level{
		{"brief", "findings and problems only", slog.LevelWarn},
		{"verbose", "also how it goes", slog.LevelInfo},
	}
}

// LevelWord is the word for the level l.
func LevelWord(l slog.Level) string {
	word := ""
	for _, v := range Levels() {
		if word == "" || l <= v.Level {
			word = v.Word
		}
	}
	return word
}

// LogVerb changes how much is logged until the filter ends, and says so in log
// itself, whatever the level.
func LogVerb(level *slog.LevelVar, log *slog.Logger) Verb {
	return Verb{"log", 1, func(_ context.Context, a *Answer, args []string) error {
		for _, v := range Levels() {
			if v.Word == args[0] {
				level.Set(v.Level)
				log.Warn("the operator has changed what is logged, until the filter ends", "log", v.Word)
				return a.JSON(struct{}{})
			}
		}
		return fmt.Errorf("there is no level %q", args[0])
	}}
}
