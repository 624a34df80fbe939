package options

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// globalConfig is the configuration of the machine.
const globalConfig = "/etc/criu/default.conf"

// maxConfig bounds a configuration file in bytes: they are a few lines.
const maxConfig = 1 << 20

// ConfigError is a line of a configuration file that cannot be understood.
type ConfigError struct {
	File   string
	Line   int
	Reason string
}

func (e *ConfigError) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Reason) }

// ReadConfig sets what a configuration file asks for. One line is one option: its long name with or without the
// dashes, then, after blanks or '=', its argument. An argument with blanks stands in double quotes, in which \" is a
// quote. From '#' on a line is a comment. A file that may be missing is not an error if it is.
func (o *Options) ReadConfig(path string, mayMiss bool) error {
	f, err := os.Open(path)
	if err != nil {
		if mayMiss && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("configuration file: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxConfig))
	lines.Buffer(nil, maxConfig)
	for n := 1; lines.Scan(); n++ {
		if err := o.configLine(lines.Text()); err != nil {
			return &ConfigError{path, n, err.Error()}
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("configuration file %s: %w", path, err)
	}
	return nil
}

// configLine sets the option of one line.
func (o *Options) configLine(line string) error {
	spelling, arg, given, err := splitConfig(line)
	if err != nil || spelling == "" {
		return err
	}
	n, full, err := lookup(spelling)
	if err != nil {
		return err
	}
	switch {
	case n.row.Arg == NoArg && given:
		return usagef("option '%s' takes no argument", full)
	case n.row.Arg == RequiredArg && !given:
		return usagef("option '%s' needs an argument", full)
	}
	if err := n.row.Set(o, arg, given, n.negated); err != nil {
		return fmt.Errorf("%s: %w", full, err)
	}
	return nil
}

// splitConfig takes a line apart.
func splitConfig(line string) (spelling, arg string, given bool, err error) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", "", false, nil
	}
	end := strings.IndexAny(line, " \t=")
	if end < 0 {
		return strings.TrimPrefix(line, "--"), "", false, nil
	}
	spelling = strings.TrimPrefix(line[:end], "--")
	attached := line[end] == '='
	rest := strings.TrimLeft(line[end+1:], " \t")
	if rest == "" || rest[0] == '#' {
		return spelling, "", attached, nil
	}
	if rest[0] == '"' {
		arg, rest, err = unquote(rest[1:])
		if err != nil {
			return "", "", false, err
		}
	} else {
		arg, rest = bareWord(rest)
	}
	if rest = strings.TrimLeft(rest, " \t"); rest != "" && rest[0] != '#' {
		return "", "", false, fmt.Errorf("more than one argument: put %q in double quotes", arg+" "+rest)
	}
	return spelling, arg, true, nil
}

// unquote takes the text up to the closing quote.
func unquote(s string) (arg, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], nil
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '"':
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", errors.New("a double quote is not closed")
}

// bareWord takes the text up to a blank or comment.
func bareWord(s string) (arg, rest string) {
	if i := strings.IndexAny(s, " \t#"); i >= 0 {
		arg, rest = s[:i], s[i:]
	} else {
		arg = s
	}
	return strings.ReplaceAll(arg, `\"`, `"`), rest
}

// listed writes option names as a sorted list.
func listed(names []string) string {
	slices.Sort(names)
	for i, n := range names {
		names[i] = "'--" + n + "'"
	}
	return strings.Join(names, ", ")
}
