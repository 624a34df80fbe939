package pipeline

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync/atomic"
)

// Graph is a declared graph of stages. Declare it from one goroutine, then run it once.
type Graph struct {
	name   string
	nodes  []*node
	edges  []*edge
	faults []error // what is wrong with the declaration
	undo   *undoCore
	log    *slog.Logger
	inject func(stage, acquisition string) error
	ran    atomic.Bool
}

// New returns an empty graph. Its name is the first word of every error it returns.
func New(name string) *Graph {
	return &Graph{name: name, log: slog.Default(), undo: &undoCore{}}
}

// Name returns the name given to New.
func (g *Graph) Name() string { return g.name }

// SetLogger makes l the logger behind [Stage.Logger]; without it, that is slog.Default.
func (g *Graph) SetLogger(l *slog.Logger) { g.log = l }

// SetJournal makes j keep a copy of every undo step that has records.
func (g *Graph) SetJournal(j Journal) { g.undo.journal = j }

// FailAfter makes the run call fail after each push on the undo stack, with the step's name, and after each item a stage
// has finished, with "item" and the item's name. If it returns an error, that acquisition or item fails with it. It
// may be called by several goroutines at once. It is how tests walk through every way in which a run can break off.
func (g *Graph) FailAfter(fail func(stage, acquisition string) error) { g.inject = fail }

// Undo returns the graph's undo stack, for use outside of stages.
func (g *Graph) Undo() *UndoStack { return &UndoStack{g: g} }

func (g *Graph) misdeclared(format string, args ...any) {
	g.faults = append(g.faults, fmt.Errorf(format, args...))
}

// node is one stage as declared.
type node struct {
	g       *Graph
	name    string
	kind    string
	doc     string
	workers int
	buffer  int
	limit   int
	inOrder bool
	ins     []*edge
	outs    []*edge
	holds   bool               // a join on a circle: reads on while one input starves
	run     func(*Stage) error // returns nil only when every input has ended and everything is emitted
	stat    counters
}

// edge is what a Stream is apart from its type: one producer, one consumer, one channel.
type edge struct {
	from, to *node
	typ      string
	buffer   int
	ordered  bool // the order of its items does not depend on which worker was faster
	depth    func() int
	close    func()
}

// Stream is an edge of the graph that carries values of type T. Each stream is read by exactly one stage; use [Broadcast]
// for more.
type Stream[T any] struct {
	e  *edge
	ch chan T
}

// Option sets a property of the stage that is being declared.
type Option struct {
	name string
	set  func(*node)
}

// Workers lets n goroutines run the body at the same time. Without it there is one.
func Workers(n int) Option { return Option{"Workers", func(s *node) { s.workers = n }} }

// Buffer is the number of items each output channel of the stage holds. Without it, it is the number of workers.
func Buffer(n int) Option { return Option{"Buffer", func(s *node) { s.buffer = n }} }

// InOrder makes a stage with several workers emit in the order of its input, not of completion.
func InOrder() Option { return Option{"InOrder", func(s *node) { s.inOrder = true }} }

// Limit is the largest number of items that a barrier or a join holds; one more is an error. Without it, it is 4Mi.
func Limit(n int) Option { return Option{"Limit", func(s *node) { s.limit = n }} }

// Doc is one sentence on what the stage does; printed with the graph.
func Doc(sentence string) Option { return Option{"Doc", func(s *node) { s.doc = sentence }} }

// defaultLimit is more than the largest pid a kernel gives out: no list of tasks is longer.
const defaultLimit = 4 << 20

// optionsOf lists the options each kind of stage understands besides Doc.
var optionsOf = map[string][]string{
	"source":    {"Buffer"},
	"map":       {"Workers", "Buffer", "InOrder"},
	"flatmap":   {"Workers", "Buffer", "InOrder"},
	"gather":    {"Buffer", "Limit"},
	"broadcast": {"Buffer"},
	"join":      {"Buffer", "Limit"},
	"with":      {"Workers", "Buffer", "InOrder", "Limit"},
	"merge":     {"Buffer"},
	"sink":      {"Workers"},
}

// declare adds a stage to the graph.
func (g *Graph) declare(kind, name string, opts []Option) *node {
	n := &node{g: g, name: name, kind: kind, workers: 1, buffer: -1, limit: defaultLimit}
	for _, o := range opts {
		if o.name != "Doc" && !slices.Contains(optionsOf[kind], o.name) {
			g.misdeclared("stage %s: a %s has no option %s", name, kind, o.name)
			continue
		}
		o.set(n)
	}
	if n.workers < 1 {
		g.misdeclared("stage %s: Workers(%d): at least one is needed", name, n.workers)
		n.workers = 1
	}
	if n.buffer < 0 {
		n.buffer = n.workers
	}
	if name == "" {
		g.misdeclared("a %s has no name", kind)
	}
	for _, other := range g.nodes {
		if other.name == name {
			g.misdeclared("stage %s: the name is taken by another stage", name)
		}
	}
	g.nodes = append(g.nodes, n)
	return n
}

// output gives n one more output of type T.
func output[T any](n *node) Stream[T] {
	ch := make(chan T, n.buffer)
	e := &edge{from: n, typ: reflect.TypeFor[T]().String(), buffer: n.buffer}
	e.depth = func() int { return len(ch) }
	e.close = func() { close(ch) }
	e.ordered = n.keepsOrder()
	n.outs = append(n.outs, e)
	n.g.edges = append(n.g.edges, e)
	return Stream[T]{e, ch}
}

func (n *node) keepsOrder() bool {
	switch n.kind {
	case "source", "gather":
		return true
	case "merge":
		return false
	}
	if n.workers > 1 && !n.inOrder {
		return false
	}
	return !slices.ContainsFunc(n.ins, func(e *edge) bool { return !e.ordered })
}

// input makes n the reader of s.
func input[T any](n *node, s Stream[T]) {
	switch {
	case s.e == nil:
		n.g.misdeclared("stage %s: an input is the zero Stream, which no stage writes", n.name)
		return
	case s.e.from.g != n.g:
		n.g.misdeclared("stage %s: an input comes from another graph (%s)", n.name, s.e.from.g.name)
		return
	case s.e.to != nil:
		n.g.misdeclared("stage %s: the stream of %s is already read by %s; use Broadcast", n.name, s.e.from.name, s.e.to.name)
		return
	}
	s.e.to = n
	n.ins = append(n.ins, s.e)
}

// check returns everything that is wrong with the declaration.
func (g *Graph) check() error {
	faults := slices.Clone(g.faults)
	if len(g.nodes) == 0 {
		faults = append(faults, errors.New("it has no stages"))
	}
	for _, e := range g.edges {
		if e.to == nil {
			faults = append(faults, fmt.Errorf("stage %s: its stream of %s is read by no stage", e.from.name, e.typ))
		}
	}
	for _, n := range g.nodes {
		if n.kind != "join" {
			continue
		}
		for _, e := range n.ins {
			if !e.ordered {
				faults = append(faults, fmt.Errorf("stage %s: pairs by position, but the order of %s's stream is not fixed; use InOrder", n.name, e.from.name))
			}
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("graph %s is misdeclared: %w", g.name, errors.Join(faults...))
}

// findCircles marks the joins two of whose inputs are connected otherwise than through the join itself.
func (g *Graph) findCircles() {
	for _, join := range g.nodes {
		if join.kind != "join" && join.kind != "with" {
			continue
		}
		reached := map[*node]bool{}
		var visit func(*node)
		visit = func(n *node) {
			if n == join || reached[n] {
				return
			}
			reached[n] = true
			for _, e := range n.ins {
				visit(e.from)
			}
			for _, e := range n.outs {
				visit(e.to)
			}
		}
		visit(join.ins[0].from)
		join.holds = reached[join.ins[1].from]
	}
}
