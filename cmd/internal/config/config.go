// Package config loads scanwatch.conf(5) with everything it names: included
// files, tables, and databases of AS numbers and countries.
package config

import (
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
	"scanwatch/internal/contain"
	"scanwatch/rules"
)

// sysconfdir is set when the program is built; see the Makefile.
var sysconfdir = "/etc"

// DefaultFiles are where the configuration is looked for if the operator names
// none; the first that exists is read. On Linux the sandbox can only leave whole
// directories open to the filter: in one of its own the rest of /etc is not.
func DefaultFiles() []string {
	if runtime.GOOS == "linux" {
		return []string{sysconfdir + "/scanwatch/scanwatch.conf", sysconfdir + "/scanwatch.conf"}
	}
	return []string{sysconfdir + "/mail/scanwatch.conf"}
}

// DefaultFile is the one to make if there is none.
func DefaultFile() string { return DefaultFiles()[0] }

// A Config is a configuration that has been loaded.
type Config struct {
	File     string
	Policy   *rules.Policy
	ASN      *lookup.Origins // nil if the configuration names none
	Country  *lookup.Origins
	Warnings rules.Errors
	// Notes tell what was odd in the files of tables, one line each.
	Notes []string

	tables map[rules.Source]*table
	files  map[string]stamp  // everything that was read, to see a change
	text   map[string]string // of the configuration's own files, to show lines

	refused []string // files that are not read; see LoadWithout
}

// stamp tells one version of a file from another. A missing file has none.
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

// Find returns the configuration file to use: file if it is not empty, the
// first default one that exists, or none.
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

// Load reads the configuration file. A table whose file cannot be used is an
// error when strict; otherwise what before has of it stays in use, or the
// rules that ask for it cannot tell, and a note says so: a broken download must
// not undo a policy. before may be nil. With an error the Config has no policy:
// it only tells when one of its files changes.
func Load(file string, lists *lookup.Lists, before *Config, strict bool) (*Config, error) {
	return load(file, nil, lists, before, strict)
}

// LoadWithout is Load, not strict, for the first time, but without the files of tables
// and databases that were refused before. They count as changed.
func LoadWithout(refused []string, file string, lists *lookup.Lists) (*Config, error) {
	return load(file, refused, lists, nil, false)
}

func load(file string, refused []string, lists *lookup.Lists, before *Config, strict bool) (*Config, error) {
	c := &Config{File: file, tables: make(map[rules.Source]*table), files: make(map[string]stamp), text: make(map[string]string), refused: refused}
	// What is in these files comes from many hands.
	err := contain.Run(func() error {
		tree, err := rules.Parse(file, c.read)
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

// Unread is what stands for a configuration that could not be read in time: it has
// no policy, and has changed as soon as there is a file.
func Unread(file string) *Config {
	return &Config{File: file, files: map[string]stamp{file: {}}}
}

// Ready loads the ready policy of that name.
func Ready(name string, lists *lookup.Lists) (*Config, error) {
	text, err := rules.ReadyPolicy(name)
	if err != nil {
		return nil, err
	}
	c := &Config{File: name + ".conf", tables: make(map[rules.Source]*table), files: make(map[string]stamp), text: make(map[string]string)}
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
	var wrong rules.Errors // tables, which a strict check names all at once
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
				c.note("table <%s>: %v; the one read before stays in use", s.Table, err)
				return kept, nil
			}
			c.note("table <%s>: %v; rules that ask for it cannot tell", s.Table, err)
			return nil, nil
		},
	})
	if err != nil {
		return err
	}
	if missed := c.Policy.Needs().Evidence & rules.LeanMisses; c.Policy.Detail == rules.DetailLean && missed != 0 {
		c.note("with detail lean there is no evidence of: %s", missed)
	}
	c.Policy.Store, c.Policy.Events = Beside(c.File, c.Policy.Store), Beside(c.File, c.Policy.Events)
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
	return errors.Join(append(errs, err)...)
}

// line is the line of the configuration at pos.
func (c *Config) line(pos rules.Pos) string {
	n := 0
	for line := range strings.Lines(c.text[pos.File]) {
		if n++; n == pos.Line {
			return strings.TrimRight(line, "\r\n")
		}
	}
	return ""
}

// read is rules' way to files; it remembers which they were.
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

// maxConfig is more than the language takes of one file.
const maxConfig = 2 << 20

func (c *Config) note(format string, args ...any) {
	c.Notes = append(c.Notes, fmt.Sprintf(format, args...))
}

// Tables lists the tables that were read from files or are shipped, with the
// number of their entries.
func (c *Config) Tables() map[string]int {
	sizes := make(map[string]int)
	for source, t := range c.tables {
		sizes[source.Table] += t.size
	}
	return sizes
}

// Beside returns where the file or directory is that a configuration names:
// beside the file that names it, if the name is not absolute.
func Beside(file, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(file), name)
}

// origins opens a database, or takes what before has of it as it is by now. It never
// changes the one of before, which is in use until it is known whom the new one hits.
func (c *Config) origins(name string, before []*lookup.Origins, strict bool) (*lookup.Origins, error) {
	if name == "" {
		return nil, nil
	}
	name = Beside(c.File, name)
	if c.ASN != nil && c.ASN.Path() == name {
		return c.ASN, nil // one file may know both
	}
	c.files[name] = stampOf(name)
	o := lookup.NewOrigins(name)
	if i := slices.IndexFunc(before, func(o *lookup.Origins) bool { return o != nil && o.Path() == name }); i >= 0 {
		o = before[i]
	}
	if slices.Contains(c.refused, name) {
		c.files[name] = stamp{}
		c.note("%v", fmt.Errorf("database %s: %w; networks and countries are not evaluated", name, errRefused))
		return o, nil
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

// Changed tells whether a file that c was made from has changed.
func (c *Config) Changed() bool {
	for name, was := range c.files {
		if !was.same(stampOf(name)) {
			return true
		}
	}
	return false
}

var errRefused = errors.New("it was refused before the restart, and is looked at again soon")

// News lists the files of tables and databases that are not as before has them.
func (c *Config) News(before *Config) (files []string) {
	for _, name := range c.Files() {
		if _, own := c.text[name]; !own && !c.files[name].same(before.files[name]) {
			files = append(files, name)
		}
	}
	return files
}

// Seen takes the files of broken, which is the next version of c and could not be
// loaded, for known, so that Changed waits until one of them is mended.
func (c *Config) Seen(broken *Config) {
	for name := range c.files {
		c.files[name] = stampOf(name)
	}
	maps.Copy(c.files, broken.files)
}

// Files lists all files that c was made from, or tried to: its own, those of its
// tables, and the databases.
func (c *Config) Files() []string { return slices.Sorted(maps.Keys(c.files)) }

// Detail shows errors of the policy language with their lines, a caret and a
// hint, and any other error as it is; it ends with a newline.
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
