package crit

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// writer emits JSON with the layout of Python's json module: on one line with ", " and ": ", or with indents of
// four spaces. Errors are kept by the bufio.Writer until its Flush.
type writer struct {
	*bufio.Writer
	indent bool
	counts []int // members so far of every object or list that is open
}

func (w *writer) open(c byte) {
	w.WriteByte(c)
	w.counts = append(w.counts, 0)
}

func (w *writer) close(c byte) {
	n := w.counts[len(w.counts)-1]
	w.counts = w.counts[:len(w.counts)-1]
	if n > 0 {
		w.newline()
	}
	w.WriteByte(c)
}

// member starts the next member of the object or list that is open.
func (w *writer) member() {
	n := &w.counts[len(w.counts)-1]
	switch {
	case *n == 0:
	case w.indent:
		w.WriteByte(',')
	default:
		w.WriteString(", ")
	}
	*n++
	w.newline()
}

func (w *writer) newline() {
	if !w.indent {
		return
	}
	w.WriteByte('\n')
	for range w.counts {
		w.WriteString("    ")
	}
}

func (w *writer) key(k string) {
	w.member()
	w.string(k)
	w.WriteString(": ")
}

// string writes s in ASCII. A byte that is no UTF-8 (file names need not be) becomes a lone surrogate, which is
// how Python passes such bytes through text, and comes back as the byte.
func (w *writer) string(s string) {
	w.WriteByte('"')
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(w, `\udc%02x`, s[0])
		case r == '"' || r == '\\':
			w.WriteByte('\\')
			w.WriteByte(byte(r))
		case r >= ' ' && r <= '~':
			w.WriteByte(byte(r))
		case r == '\n':
			w.WriteString(`\n`)
		case r == '\r':
			w.WriteString(`\r`)
		case r == '\t':
			w.WriteString(`\t`)
		case r == '\b':
			w.WriteString(`\b`)
		case r == '\f':
			w.WriteString(`\f`)
		case r > 0xffff:
			r -= 0x10000
			fmt.Fprintf(w, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			fmt.Fprintf(w, `\u%04x`, r)
		}
		s = s[n:]
	}
	w.WriteByte('"')
}

// base64 writes the bytes of r as a string of base64 in lines of 76 characters, as MIME has them.
func (w *writer) base64(r io.Reader) error {
	w.WriteByte('"')
	var raw [57]byte
	var line [76]byte
	for {
		n, err := io.ReadFull(r, raw[:])
		if n > 0 {
			base64.StdEncoding.Encode(line[:], raw[:n])
			w.Write(line[:base64.StdEncoding.EncodedLen(n)])
			w.WriteString(`\n`)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			w.WriteByte('"')
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// unbase64 decodes base64 with line breaks.
func unbase64(s string) ([]byte, error) {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == ' ' || r == '\t' {
			return -1
		}
		return r
	}, s)
	return base64.StdEncoding.DecodeString(s)
}
