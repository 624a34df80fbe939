package options

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// The command line is read the way getopt_long does, because scripts and drivers rely on it: unique prefixes of long
// names, optional arguments that must be attached (-v4, -x1234, --manage-cgroups=full), one-letter options in a bunch, and
// options before or behind the verb. pflag has neither prefixes nor attached optional arguments, so this is a thin
// layer of its own over [Table].

// UsageError is a command line or configuration that cannot be understood.
type UsageError struct{ Reason string }

func (e *UsageError) Error() string { return e.Reason }

func usagef(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// name is one spelling that the command line accepts.
type name struct {
	row     *Option
	negated bool
}

// spellings maps every long spelling and every letter to its row.
var spellings = sync.OnceValues(index)

func index() (map[string]name, map[byte]*Option) {
	long, short := make(map[string]name, 2*len(Table)), make(map[byte]*Option)
	for i := range Table {
		row := &Table[i]
		long[row.Long] = name{row, false}
		if row.Negatable {
			long["no-"+row.Long] = name{row, true}
		}
		if row.Short != 0 {
			short[row.Short] = row
		}
	}
	return long, short
}

// Parse reads a command line (without the program's name) on top of the configuration files that it allows.
// When help or the version is asked for, only that is set. Errors are [*UsageError] or [*ConfigError].
func Parse(args []string) (*Options, error) {
	o := Default()
	if wantsHelp(args) { // even if the rest is wrong
		o.Help = true
		return o, nil
	}
	probe := Default()
	words, err := probe.getopt(args)
	if err != nil {
		return nil, err
	}
	if probe.Version {
		return probe, nil
	}
	if err := o.readConfigs(probe.Config, probe.NoDefaultConfig); err != nil {
		return nil, err
	}
	if _, err := o.getopt(args); err != nil {
		return nil, err
	}
	return o, o.setVerb(words)
}

func wantsHelp(args []string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if a == "--help" || a == "-h" {
			return true
		}
	}
	return false
}

// setVerb takes the words that are no options: the verb and, for swrk and --exec-cmd, what follows it.
func (o *Options) setVerb(words []string) error {
	verb, n, err := VerbByName(words)
	if err != nil {
		return &UsageError{err.Error()}
	}
	o.Verb = verb
	rest := words[n:]
	switch {
	case verb == Swrk:
		if len(rest) != 1 {
			return usagef("swrk takes one descriptor: criu swrk FD")
		}
		return bounded{&o.SwrkFD, 0, maxFD, "descriptor number"}.Set(rest[0], true)
	case verb&dumping != 0 && o.Tree == 0 && o.Graph == "":
		return usagef("%s needs the root of a process tree: -t PID", verb)
	case verb == Restore && o.Sibling && !o.Detach:
		return usagef("--restore-sibling makes sense with --restore-detached only")
	case o.execAsked && verb != Restore:
		return usagef("--exec-cmd is for restore only")
	case o.execAsked && o.Detach:
		return usagef("--exec-cmd and --restore-detached exclude each other")
	case o.execAsked && len(rest) == 0:
		return usagef("--exec-cmd needs a command behind '--'")
	case o.execAsked:
		o.ExecCmd = rest
	case len(rest) > 0:
		return usagef("%s takes no argument, but got %q", verb, rest[0])
	}
	return nil
}

// getopt sets what args ask for and returns the words that are no options.
func (o *Options) getopt(args []string) (words []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return append(words, args...), nil
		case strings.HasPrefix(arg, "--"):
			args, err = o.long(arg[2:], args)
		case len(arg) > 1 && arg[0] == '-':
			args, err = o.bunch(arg[1:], args)
		default:
			words = append(words, arg)
		}
		if err != nil {
			return nil, err
		}
	}
	return words, nil
}

// long handles one long option and returns what is left of the following arguments.
func (o *Options) long(opt string, next []string) ([]string, error) {
	spelling, arg, given := strings.Cut(opt, "=")
	n, full, err := lookup(spelling)
	if err != nil {
		return nil, err
	}
	switch {
	case n.row.Arg == NoArg && given:
		return nil, usagef("option '--%s' takes no argument", full)
	case n.row.Arg == RequiredArg && !given:
		if len(next) == 0 {
			return nil, usagef("option '--%s' needs an argument", full)
		}
		arg, given, next = next[0], true, next[1:]
	}
	if err := n.row.Set(o, arg, given, n.negated); err != nil {
		return nil, usagef("--%s: %v", full, err)
	}
	return next, nil
}

// bunch handles one-letter options written together.
func (o *Options) bunch(letters string, next []string) ([]string, error) {
	_, shorts := spellings()
	for i := 0; i < len(letters); i++ {
		row := shorts[letters[i]]
		if row == nil {
			return nil, usagef("unknown option '-%c'", letters[i])
		}
		arg := letters[i+1:]
		given := arg != ""
		switch {
		case row.Arg == NoArg:
			arg, given = "", false
		case row.Arg == RequiredArg && !given:
			if len(next) == 0 {
				return nil, usagef("option '-%c' needs an argument", row.Short)
			}
			arg, given, next = next[0], true, next[1:]
		}
		if err := row.Set(o, arg, given, false); err != nil {
			return nil, usagef("-%c: %v", row.Short, err)
		}
		if row.Arg != NoArg {
			break
		}
	}
	return next, nil
}

// lookup finds a long option by its name or a prefix that only one option has. An option of our own is not meant
// by a prefix that one of criu's has.
func lookup(spelling string) (name, string, error) {
	names, _ := spellings()
	if n, ok := names[spelling]; ok {
		return n, spelling, nil
	}
	var found []string
	foundOwn := true
	for full, n := range names {
		if spelling == "" || !strings.HasPrefix(full, spelling) {
			continue
		}
		if foundOwn && !n.row.Own {
			found, foundOwn = nil, false
		}
		if n.row.Own == foundOwn {
			found = append(found, full)
		}
	}
	switch len(found) {
	case 0:
		return name{}, "", usagef("unknown option '--%s'", spelling)
	case 1:
		return names[found[0]], found[0], nil
	}
	return name{}, "", usagef("option '--%s' is ambiguous: %s", spelling, listed(found))
}

// Set gives the option of this row a value in o. Only negatable options may be negated.
func (r *Option) Set(o *Options, arg string, given, negated bool) error {
	switch to := r.field(o).(type) {
	case *bool:
		*to = !negated
	case *string:
		if strings.IndexByte(arg, 0) >= 0 {
			return errors.New("the argument holds a zero byte")
		}
		*to = arg
	case *[]string:
		*to = append(*to, arg)
	case *uint:
		n := 0
		if err := (bounded{&n, 0, maxFD, "number"}).Set(arg, given); err != nil {
			return err
		}
		*to = uint(n)
	case Value:
		return to.Set(arg, given)
	default:
		panic(fmt.Sprintf("options: --%s has a field of type %T", r.Long, to))
	}
	return nil
}

// readConfigs reads the configuration files in criu's order; a later one overrides an earlier one.
func (o *Options) readConfigs(named string, noDefault bool) error {
	if !noDefault && named == "" {
		if err := o.ReadConfig(globalConfig, true); err != nil {
			return err
		}
		if home := os.Getenv("HOME"); home != "" {
			if err := o.ReadConfig(home+"/.criu/default.conf", true); err != nil {
				return err
			}
		}
	}
	for _, path := range []string{os.Getenv("CRIU_CONFIG_FILE"), named} {
		if path == "" {
			continue
		}
		if err := o.ReadConfig(path, false); err != nil {
			return err
		}
	}
	return nil
}
