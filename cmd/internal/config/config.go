// Package config loads scanwatch.conf(5) together with the files it includes, its tables,
// and the databases of AS numbers and countries.
package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"scanwatch/filter/lookup"
	"scanwatch/filter/lookup/feed"
	"scanwatch/internal/safego"
	"scanwatch/rules"
)

// sysconfdir is the directory for configuration files. The Makefile sets it.
var sysconfdir = "/etc"

// DefaultFiles returns the default paths of the configuration. Programs use the first
// file that exists. On Linux the sandbox can only grant whole directories, so the
// configuration has its own directory and the rest of /etc remains inaccessible.
func DefaultFiles() []string {
	if runtime.GOOS == "linux" {
		return []string{sysconfdir + "/scanwatch/scanwatch.conf", sysconfdir + "/scanwatch.conf"}
	}
	return []string{sysconfdir + "/mail/scanwatch.conf"}
}

// DefaultFile returns the path for a new configuration.
func DefaultFile() string { return DefaultFiles()[0] }

// A Config is a loaded configuration.
type Config struct {
	File     string
	Policy   *rules.Policy
	ASN      *lookup.Origins // nil if not configured
	Country  *lookup.Origins
	Warnings rules.Errors
	// Notes lists problems with tables and databases, one per line.
	Notes []string
	// Kept lists the tables that keep their previous entries because their files cannot
	// be used.
	Kept []string
	// Blank lists the tables whose files contain only white space, perhaps because their entries
	// were lost.
	Blank []string

	tables map[rules.Source]*table
	files  map[string]stamp  // versions of all files, for detecting changes
	text   map[string]string // configuration text by file, for quoting lines in errors

	forced bool // an empty file empties its table; see Reload
	strict bool
}

// A stamp identifies a file's version. A stamp is zero if the file is missing.
type stamp struct {
	size int64
	time time.Time
	info fs.FileInfo
}

func stampOf(file string) stamp {
	info, err := os.Stat(file)
	if err != nil {
		return stamp{}
	}
	return stamp{info.Size(), info.ModTime(), info}
}

func (s stamp) same(o stamp) bool {
	return s.size == o.size && s.time.Equal(o.time) && (s.info == nil) == (o.info == nil) && (s.info == nil || os.SameFile(s.info, o.info))
}

// Find returns file. If file is empty, Find returns the first of DefaultFiles that
// exists, or "" if none does.
func Find(file string) string {
	if file != "" {
		return file
	}
	for _, file := range DefaultFiles() {
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	return ""
}

// Load loads the configuration from file. If strict is set, an unusable table or database is an
// error. Otherwise, Load only adds a note, because a broken download must not disable a policy. An
// unusable table keeps the entries that it has in before, the previous configuration. If before is
// nil or lacks the table, conditions on that table are unknown. If Load returns an error, the
// Config has no policy and can only detect changes to its files.
func Load(file string, lists *lookup.Lists, before *Config, strict bool) (*Config, error) {
	return newConfig(file).loadAll(lists, before, strict)
}

// Reload reloads before's configuration file, like Load without strict. If forced is set,
// a table whose file is empty becomes empty.
func Reload(before *Config, lists *lookup.Lists, forced bool) (*Config, error) {
	c := newConfig(before.File)
	c.forced = forced
	return c.loadAll(lists, before, false)
}

func (c *Config) loadAll(lists *lookup.Lists, before *Config, strict bool) (*Config, error) {
	c.strict = strict
	// A file from an external source must not be able to crash the process.
	err := safego.Run(func() error {
		tree, err := rules.Parse(c.File, c.read)
		if err != nil {
			return err
		}
		return c.compile(tree, lists, before, strict)
	})
	if err != nil {
		c.Policy = nil
	}
	return c, err
}

func newConfig(file string) *Config {
	return &Config{File: file, tables: make(map[rules.Source]*table), files: make(map[string]stamp), text: make(map[string]string)}
}

// Unread returns a Config without a policy, for a file that could not be read in time. If the file
// exists, the Config's Changed method returns true.
func Unread(file string) *Config {
	return &Config{File: file, files: map[string]stamp{file: {}}}
}

// Ready loads the preset with the given name.
func Ready(name string, lists *lookup.Lists) (*Config, error) {
	text, err := rules.ReadyPolicy(name)
	if err != nil {
		return nil, err
	}
	c := newConfig(name + ".conf")
	tree, err := rules.Parse(c.File, func(string) ([]byte, error) { return text, nil })
	if err != nil {
		return nil, err
	}
	if err := c.compile(tree, lists, nil, true); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) compile(tree *rules.Config, lists *lookup.Lists, before *Config, strict bool) (err error) {
	var wrong rules.Errors // errors of all tables, if strict is set
	c.Policy, c.Warnings, err = rules.Compile(tree, rules.Options{
		Load: func(s rules.Source) (rules.Table, error) {
			t, err := c.load(s, lists, before)
			if err == nil {
				return t, nil
			}
			if strict {
				wrong = append(wrong, &rules.Error{Pos: s.Pos, Source: c.line(s.Pos), Msg: fmt.Sprintf("table <%s>: %v", s.Table, err)})
				return nil, nil
			}
			if kept := before.table(s); kept != nil {
				c.tables[key(s)] = kept
				c.Kept = append(c.Kept, s.Table)
				c.note("table <%s>: %v; keeping the previous table", s.Table, err)
				return kept, nil
			}
			c.note("table <%s>: %v; conditions on it are unknown", s.Table, err)
			return nil, nil
		},
	})
	if err != nil {
		return err
	}
	c.Policy.Store = ResolvePath(c.File, c.Policy.Store)
	var errs []error
	if len(wrong) > 0 {
		errs = append(errs, wrong)
	}
	var known []*lookup.Origins
	if before != nil {
		known = []*lookup.Origins{before.ASN, before.Country}
	}
	c.ASN, err = c.origins(c.Policy.ASN, known, strict)
	errs = append(errs, err)
	c.Country, err = c.origins(c.Policy.Country, known, strict)
	c.checkFields(tree)
	return errors.Join(append(errs, err)...)
}

// checkFields adds a warning for each database that lacks the field its statement needs.
func (c *Config) checkFields(tree *rules.Config) {
	for _, s := range tree.All() {
		set, ok := s.(*rules.Setting)
		if !ok {
			continue
		}
		var state lookup.OriginState
		var missing string
		switch {
		case set.Word == "asn" && c.ASN != nil:
			if state = c.ASN.State(); !state.ASN {
				missing = "AS numbers"
			}
		case set.Word == "country" && c.Country != nil:
			if state = c.Country.State(); !state.Country {
				missing = "countries"
			}
		}
		if state.Loaded && missing != "" {
			c.Warnings = append(c.Warnings, &rules.Error{Pos: set.Pos, Source: c.line(set.Pos), Warning: true, Hint: "name a database that has them",
				Msg: fmt.Sprintf("database %s has no %s (type %s): conditions on %s never match", state.Path, missing, state.Type, set.Word)})
		}
	}
}

// Empty reports whether the configuration file contains only white space, for example
// because the disk was full when the file was written.
func (c *Config) Empty() bool { return strings.TrimSpace(c.text[c.File]) == "" }

// Digest returns a hash of the configuration files and of the tables that exempt hosts.
// Shipped lists are not hashed, because they are part of the program.
func (c *Config) Digest() string {
	var parts []string
	for _, text := range c.text {
		parts = append(parts, hashOf("file", text))
	}
	for source, t := range c.tables {
		if !source.Builtin && c.Policy.PassesUseTable(source.Table) {
			parts = append(parts, hashOf("table "+source.Table, t.digest))
		}
	}
	slices.Sort(parts) // paths are not hashed, because they depend on the working directory
	return hashOf(parts...)
}

func hashOf(texts ...string) string {
	h := sha256.New()
	for _, s := range texts {
		fmt.Fprintf(h, "%d %s\n", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// line returns the line of the configuration at pos.
func (c *Config) line(pos rules.Pos) string {
	n := 0
	for line := range strings.Lines(c.text[pos.File]) {
		if n++; n == pos.Line {
			return strings.TrimRight(line, "\r\n")
		}
	}
	return ""
}

// read reads a configuration file for package rules and stores its stamp.
func (c *Config) read(name string) ([]byte, error) {
	c.files[name] = stampOf(name)
	f, err := feed.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	c.text[name] = string(b)
	return b, err
}

// maxConfig limits the number of bytes read from a configuration file. Package rules has
// a lower limit, and reports files that exceed it.
const maxConfig = 2 << 20

func (c *Config) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

// Tables returns the number of entries in each table that comes from a file or from a
// shipped list.
func (c *Config) Tables() map[string]int {
	sizes := make(map[string]int)
	for source, t := range c.tables {
		sizes[source.Table] += t.size
	}
	return sizes
}

// ResolvePath returns the path of name. A relative name is resolved against the directory of file.
func ResolvePath(file, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(file), name)
}

// origins opens a database. If before contains the database, origins returns an updated copy. The
// original remains unchanged and in use until the copy has been checked.
func (c *Config) origins(name string, before []*lookup.Origins, strict bool) (*lookup.Origins, error) {
	if name == "" {
		return nil, nil
	}
	name = ResolvePath(c.File, name)
	if c.ASN != nil && c.ASN.Path() == name {
		return c.ASN, nil // a file can provide both AS numbers and countries
	}
	c.files[name] = stampOf(name)
	o := lookup.NewOrigins(name)
	if i := slices.IndexFunc(before, func(o *lookup.Origins) bool { return o != nil && o.Path() == name }); i >= 0 {
		o = before[i]
	}
	o, err := o.Next()
	if err != nil {
		if strict {
			return nil, err
		}
		c.note("%v", err)
	}
	return o, nil
}

// Changed reports whether any file of c has changed.
func (c *Config) Changed() bool {
	for name, was := range c.files {
		if !was.same(stampOf(name)) {
			return true
		}
	}
	return false
}

// MarkSeen records the current versions of all files of c and of broken, a newer version of c that
// failed to load. After that, Changed reports only further changes.
func (c *Config) MarkSeen(broken *Config) {
	for name := range c.files {
		c.files[name] = stampOf(name)
	}
	maps.Copy(c.files, broken.files)
}

// Files returns all configuration files, tables and databases of c, including missing
// ones.
func (c *Config) Files() []string { return slices.Sorted(maps.Keys(c.files)) }

// Detail returns the text of err with a final newline. For a policy error, the text
// includes the line, a caret and a hint.
func Detail(err error) string {
	switch e := err.(type) {
	case rules.Errors:
		return e.Detail()
	case interface{ Unwrap() []error }:
		var b strings.Builder
		for _, err := range e.Unwrap() {
			b.WriteString(Detail(err))
		}
		return b.String()
	}
	return err.Error() + "\n"
}
