package crit

import (
	"bytes"
	"fmt"
)

// Names of unix sockets are shown quoted-printable: mostly text, with a zero byte in front where they are abstract.
// The exact choices (what is quoted, where lines break) are those of Python's binascii, which crit uses; the
// standard library's mime/quotedprintable makes others.

const maxLine = 76

// quote encodes b. Line ends stand for themselves unless they are mixed, which would not survive.
func quote(b []byte) string {
	s := quoteText(b, true)
	if back := unquote(s); !bytes.Equal(back, b) {
		s = quoteText(b, false)
	}
	return s
}

func quoteText(b []byte, lines bool) string {
	var out bytes.Buffer
	eol := "\n"
	if i := bytes.IndexByte(b, '\n'); i > 0 && b[i-1] == '\r' {
		eol = "\r\n"
	}
	width := 0
	for i := 0; i < len(b); {
		c, rest := b[i], b[i+1:]
		switch {
		case mustQuote(c, rest, width == 0, lines):
			if width+3 >= maxLine {
				out.WriteString("=" + eol)
				width = 0
			}
			fmt.Fprintf(&out, "=%02X", c)
			width += 3
			i++
		case c == '\n' || c == '\r' && len(rest) > 0 && rest[0] == '\n':
			width = 0
			if n := out.Len(); n > 0 && (out.Bytes()[n-1] == ' ' || out.Bytes()[n-1] == '\t') {
				last := out.Bytes()[n-1]
				out.Truncate(n - 1)
				fmt.Fprintf(&out, "=%02X", last)
			}
			out.WriteString(eol)
			if i++; c == '\r' {
				i++
			}
		default:
			if len(rest) > 0 && rest[0] != '\n' && width+1 >= maxLine {
				out.WriteString("=" + eol)
				width = 0
			}
			out.WriteByte(c)
			width++
			i++
		}
	}
	return out.String()
}

func mustQuote(c byte, rest []byte, lineStart, lines bool) bool {
	switch {
	case c > 126 || c == '=':
		return true
	case c == '\r' || c == '\n':
		return !lines
	case c == ' ' || c == '\t':
		return len(rest) == 0
	case c == '.':
		return lineStart && (len(rest) == 0 || rest[0] == '\n' || rest[0] == '\r' || rest[0] == 0)
	}
	return c < 33
}

// unquote decodes quoted-printable text: =XX is a byte, = before a line end joins lines.
func unquote(s string) []byte {
	var out []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '=' {
			out = append(out, s[i])
			continue
		}
		var v byte
		switch {
		case i+1 < len(s) && s[i+1] == '\n':
			i++
		case i+2 < len(s) && s[i+1] == '\r' && s[i+2] == '\n':
			i += 2
		case i+2 < len(s) && scanHex(s[i+1:i+3], &v):
			out = append(out, v)
			i += 2
		default:
			out = append(out, '=')
		}
	}
	return out
}

func scanHex(s string, v *byte) bool {
	n := 0
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		default:
			return false
		}
		n = n<<4 | int(c)
	}
	*v = byte(n)
	return true
}
