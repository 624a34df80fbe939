package pipeline

import (
	"fmt"
	"strings"
)

// DOT prints the declaration as a graph for Graphviz: stages with kind, workers and sentence, edges with type and buffer.
func (g *Graph) DOT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %q {\n\trankdir=LR;\n\tnode [shape=box, fontname=sans];\n\tedge [fontname=monospace, fontsize=10];\n", g.name)
	for _, n := range g.nodes {
		fmt.Fprintf(&b, "\t%q [label=\"%s\"", n.name, strings.Join(quoteAll(n.lines()), `\n`))
		if n.kind == "gather" || n.kind == "join" || n.kind == "with" {
			fmt.Fprint(&b, ", style=rounded")
		}
		fmt.Fprint(&b, "];\n")
	}
	for _, e := range g.edges {
		if e.to != nil {
			fmt.Fprintf(&b, "\t%q -> %q [label=%q];\n", e.from.name, e.to.name, e.label())
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// Mermaid prints the declaration as a Mermaid flowchart, as DOT does for Graphviz.
func (g *Graph) Mermaid() string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\ntitle: %s\n---\nflowchart LR\n", g.name)
	id := make(map[*node]string)
	for i, n := range g.nodes {
		id[n] = fmt.Sprintf("s%d", i)
		fmt.Fprintf(&b, "\t%s[\"%s\"]\n", id[n], strings.Join(escapeAll(n.lines()), "<br/>"))
	}
	for _, e := range g.edges {
		if e.to != nil {
			fmt.Fprintf(&b, "\t%s -- \"%s\" --> %s\n", id[e.from], mermaidEscape.Replace(e.label()), id[e.to])
		}
	}
	return b.String()
}

// lines are what is written into the box of a stage.
func (n *node) lines() []string {
	kind := n.kind
	if n.workers > 1 {
		kind += fmt.Sprintf(" ×%d", n.workers)
	}
	if n.inOrder {
		kind += ", in order"
	}
	lines := []string{n.name, kind}
	if n.doc != "" {
		lines = append(lines, n.doc)
	}
	return lines
}

// label is the type an edge carries and its buffer.
func (e *edge) label() string { return fmt.Sprintf("%s [%d]", e.typ, e.buffer) }

var (
	dotEscape     = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	mermaidEscape = strings.NewReplacer(`"`, "#quot;", "<", "#lt;", ">", "#gt;", "[", "#91;", "]", "#93;")
)

func quoteAll(lines []string) []string  { return replaceAll(dotEscape, lines) }
func escapeAll(lines []string) []string { return replaceAll(mermaidEscape, lines) }

func replaceAll(r *strings.Replacer, lines []string) []string {
	for i, l := range lines {
		lines[i] = r.Replace(l)
	}
	return lines
}
