package control

import (
	"context"
	"fmt"
	"log/slog"
)

// A Level is a log level of the filter.
type Level struct {
	Word  string
	Means string
	slog.Level
}

// Levels returns all levels.
func Levels() []Level {
	return []Level{
		{"brief", "suspicious sessions, bans and problems", slog.LevelWarn},
		{"verbose", "suspicious sessions, bans, problems, each finding and decision, and progress", slog.LevelInfo},
	}
}

// LevelWord returns the word for a log level.
func LevelWord(l slog.Level) string {
	word := ""
	for _, v := range Levels() {
		if word == "" || l <= v.Level {
			word = v.Word
		}
	}
	return word
}

// LogCommand returns the command that sets the log level until the filter stops. The
// change is logged at any level.
func LogCommand(level *slog.LevelVar, log *slog.Logger) Command {
	return Command{"log", 1, func(_ context.Context, a *Answer, args []string) error {
		for _, v := range Levels() {
			if v.Word == args[0] {
				level.Set(v.Level)
				log.Warn("log level changed until the filter stops", "log", v.Word)
				return a.JSON(struct{}{})
			}
		}
		return fmt.Errorf("unknown log level %q; use brief or verbose", args[0])
	}}
}
