package options

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

const (
	helpWidth  = 80
	helpColumn = 30 // where descriptions begin
)

// WriteUsage prints the verbs.
func WriteUsage(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprint(b, `Usage:
  criu dump|pre-dump -t PID [OPTION]...
  criu restore [OPTION]... [--exec-cmd -- COMMAND...]
  criu check [--extra|--experimental|--all|--feature NAME]
  criu extract -D DIR <STREAM
  criu page-server|service|lazy-pages|dedup [OPTION]...
  criu cpuinfo dump|check [OPTION]...

Commands:
`)
	for _, v := range Verbs {
		note := v.Help
		if !v.Needs.Built() && v.Needs != Never {
			note += " (not built yet)"
		}
		entry(b, "  "+v.Name, 18, note)
	}
	return b.Flush()
}

// WriteHelp prints verbs and options, by section.
func WriteHelp(w io.Writer) error {
	if err := WriteUsage(w); err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	b.WriteByte('\n')
	fill(b, 0, 0, "Options may stand before or behind the command, and long ones may be cut short. "+
		"Those marked ~ can be turned round: --no-NAME. Options marked * are not criu's, those marked - are not built yet.")
	for _, s := range sections {
		fmt.Fprintf(b, "\n%s:\n", s)
		for i := range Table {
			if row := &Table[i]; row.Section == s {
				entry(b, row.spelling(), helpColumn, row.Help)
			}
		}
	}
	return b.Flush()
}

// spelling is the left column of the help.
func (r *Option) spelling() string {
	mark := " "
	switch {
	case !r.Needs.Built():
		mark = "-"
	case r.Own:
		mark = "*"
	case r.Negatable:
		mark = "~"
	}
	short := "   "
	if r.Short != 0 {
		short = fmt.Sprintf("-%c,", r.Short)
	}
	s := fmt.Sprintf("%s %s --%s", mark, short, r.Long)
	switch r.Arg {
	case RequiredArg:
		s += " " + r.ArgName
	case OptionalArg:
		s += "[=" + r.ArgName + "]"
	}
	return s
}

// entry prints left, and right beginning at a column.
func entry(b *bufio.Writer, left string, column int, right string) {
	b.WriteString(left)
	at := len(left)
	if at >= column {
		b.WriteByte('\n')
		at = 0
	}
	b.WriteString(strings.Repeat(" ", column-at))
	fill(b, column, column, right)
}

// fill prints words within the width; at is where the line is, indent where the next ones begin.
func fill(b *bufio.Writer, at, indent int, text string) {
	start := true
	for word := range strings.FieldsSeq(text) {
		switch {
		case start:
			start = false
		case at+1+len(word) > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			at = indent
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	b.WriteByte('\n')
}
