package stages

import (
	"context"
	"errors"
	"fmt"
	"os"

	"cryo/internal/options"
	"cryo/pipeline"

	"golang.org/x/sys/unix"
)

// runGraph runs a graph under the observers that o asks for: --trace, --trace-file and --progress.
func runGraph(ctx context.Context, g *pipeline.Graph, o *options.Options) error {
	var watch []pipeline.Observer
	live := isTerminal(os.Stderr)
	if o.Trace {
		watch = append(watch, pipeline.NewTrace(os.Stderr, live))
	}
	switch o.Progress {
	case "json":
		watch = append(watch, pipeline.NewProgressJSON(os.Stderr))
	case "bar":
		if live { // a bar is nothing for a file
			watch = append(watch, pipeline.NewProgress(os.Stderr))
		}
	}
	if o.TraceFile == "" {
		return g.Run(ctx, watch...)
	}
	f, err := os.OpenFile(o.TraceFile, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("trace file: %w", err)
	}
	trace := pipeline.NewTraceFile(f)
	err = g.Run(ctx, append(watch, trace)...)
	if lost := errors.Join(trace.Err(), f.Close()); lost != nil && err == nil {
		return fmt.Errorf("trace file: %w", lost) // the work itself is done
	}
	return err
}

// Graph prints the graph of stages of a verb: "dot" or "mermaid".
func Graph(verb options.Verb, format options.Format) (string, error) {
	var g *pipeline.Graph
	switch verb {
	case options.Dump:
		g = (&dumper{o: options.Default(), memory: &memory{}}).graph()
	case options.PreDump:
		g = (&dumper{o: options.Default(), memory: &memory{}}).preDumpGraph()
	case options.Restore:
		g = (&restorer{o: options.Default()}).graph()
	default:
		return "", fmt.Errorf("%v has no graph of stages: dump, pre-dump and restore have", verb)
	}
	if format == "mermaid" {
		return g.Mermaid(), nil
	}
	return g.DOT(), nil
}
