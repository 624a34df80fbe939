// Command crit shows checkpoint images as JSON, makes images of JSON and explores image sets, as criu's tool of
// that name does.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"cryo/internal/crit"
	"cryo/internal/image"
	"cryo/sinks"

	"github.com/spf13/pflag"
)

// version is that of the crit whose behaviour this has.
const version = "4.2"

const usage = `usage: crit [-h] [--version] {decode,encode,info,x,show,compress,decompress} ...

  decode [--pretty] [-i IN] [-o OUT]   convert image from binary type to json
  encode [-i IN] [-o OUT]              convert image from json type to binary
  info IN                              show info about image
  x DIR {ps,fds,mems,rss}              explore image dir
  show [--nopl] IN                     convert image from binary to human-readable json
  compress [--codec C] [--region N] DIR   compress the pages of an image set where they are
  decompress DIR                          store them plainly again

IN and OUT are standard input and output unless given. Options of a command:
`

func main() {
	err := run(os.Args[1:], os.Stdin, os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, pflag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "%scrit: error: %v\n", usage[:strings.Index(usage, "\n")+1], err)
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "crit: %v\n", err)
		os.Exit(1)
	}
}

// errUsage is every error about the command line.
var errUsage = errors.New("bad command line")

func usageError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

// params is the command line.
type params struct {
	in, out      string
	pretty, nopl bool
	codec        string
	region       int
	args         []string
	stdin        io.Reader
	stdout       io.Writer
}

// verbs by name, with the number of arguments each takes and the options it knows.
var verbs = map[string]struct {
	args  int
	flags []string
	run   func(*params) error
}{
	"decode": {0, []string{"in", "out", "pretty"}, decode},
	"encode": {0, []string{"in", "out"}, encode},
	"info":   {1, nil, info},
	"show":   {1, []string{"nopl"}, show},
	"x":      {2, nil, explore},

	"compress":   {1, []string{"codec", "region"}, compress},
	"decompress": {1, nil, decompress},
}

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	p := &params{stdin: stdin, stdout: stdout}
	set := pflag.NewFlagSet("crit", pflag.ContinueOnError)
	set.Usage = func() { fmt.Fprintf(stdout, "%s%s", usage, set.FlagUsages()) }
	set.SortFlags = false
	set.StringVarP(&p.in, "in", "i", "", "what to read (stdin by default)")
	set.StringVarP(&p.out, "out", "o", "", "what to write (stdout by default)")
	set.BoolVar(&p.pretty, "pretty", false, "multiline with indents and some numerical fields in field-specific format")
	set.BoolVar(&p.nopl, "nopl", false, "do not show entry payload (if exists)")
	set.StringVar(&p.codec, "codec", "lz4", "how to compress: lz4, which criu after 4.2 reads, or zstd")
	set.IntVar(&p.region, "region", sinks.DefaultBlock, "how many bytes to compress together")
	showVersion := set.Bool("version", false, "show the version")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return err
		}
		return usageError("%v", err)
	}
	if *showVersion {
		_, err := fmt.Fprintln(stdout, version)
		return err
	}
	if set.NArg() == 0 {
		return usageError("too few arguments")
	}
	verb, ok := verbs[set.Arg(0)]
	if !ok {
		return usageError("invalid choice: %q (choose from %s)", set.Arg(0), strings.Join(slices.Sorted(maps.Keys(verbs)), ", "))
	}
	p.args = set.Args()[1:]
	if len(p.args) != verb.args {
		return usageError("%s takes %d arguments, not %d", set.Arg(0), verb.args, len(p.args))
	}
	var err error
	set.Visit(func(f *pflag.Flag) {
		if !slices.Contains(verb.flags, f.Name) {
			err = usageError("%s has no option --%s", set.Arg(0), f.Name)
		}
	})
	if err != nil {
		return err
	}
	return verb.run(p)
}

func decode(p *params) error {
	dec, in, err := p.open()
	if err != nil {
		return err
	}
	defer in.Close()
	return p.write(in, func(w io.Writer) error {
		if err := crit.Decode(w, dec, crit.Options{Pretty: p.pretty, NoPayload: p.nopl}); err != nil {
			return err
		}
		if p.out == "" {
			fmt.Fprintln(w)
		}
		return nil
	})
}

func show(p *params) error {
	p.in, p.pretty = p.args[0], true
	return decode(p)
}

func encode(p *params) error {
	in, err := p.input()
	if err != nil {
		return err
	}
	defer in.Close()
	return p.write(in, func(w io.Writer) error { return crit.Encode(w, bufio.NewReader(in)) })
}

func info(p *params) error {
	p.in = p.args[0]
	dec, in, err := p.open()
	if err != nil {
		return err
	}
	defer in.Close()
	return crit.Info(p.stdout, dec)
}

func compress(p *params) error {
	for _, codec := range []image.Codec{image.LZ4, image.Zstd} {
		if codec.String() == p.codec {
			return sinks.Recode(p.args[0], codec, p.region)
		}
	}
	return usageError("invalid choice: %q (choose from lz4, zstd)", p.codec)
}

func decompress(p *params) error { return sinks.Recode(p.args[0], image.Plain, 0) }

func explore(p *params) error {
	view, ok := crit.Explorers[p.args[1]]
	if !ok {
		return usageError("invalid choice: %q (choose from %s)", p.args[1], strings.Join(slices.Sorted(maps.Keys(crit.Explorers)), ", "))
	}
	src, err := image.OpenDir(p.args[0])
	if err != nil {
		return err
	}
	defer src.Close()
	return view(p.stdout, src)
}

func (p *params) input() (io.ReadCloser, error) {
	if p.in == "" {
		return io.NopCloser(p.stdin), nil
	}
	return os.Open(p.in)
}

// open opens the image that is to be read.
func (p *params) open() (*image.Decoder, io.ReadCloser, error) {
	in, err := p.input()
	if err != nil {
		return nil, nil, err
	}
	name := p.in
	if name == "" {
		name = "on standard input"
	}
	dec, err := image.DetectDecoder(in, name)
	if err != nil {
		in.Close()
		return nil, nil, err
	}
	return dec, in, nil
}

// write gives f the output. A file that is the input as well is refused, for it would be emptied before it is read.
func (p *params) write(in io.Reader, f func(io.Writer) error) error {
	if p.out == "" {
		w := bufio.NewWriter(p.stdout)
		return errors.Join(f(w), w.Flush())
	}
	if from, ok := in.(*os.File); ok {
		a, err := from.Stat()
		b, err2 := os.Stat(p.out)
		if err == nil && err2 == nil && os.SameFile(a, b) {
			return fmt.Errorf("%s is both input and output", p.out)
		}
	}
	out, err := os.OpenFile(p.out, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f(out), out.Close())
}
