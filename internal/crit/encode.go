package crit

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"cryo/internal/image"

	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Encode reads JSON from r and writes the image it describes to w.
func Encode(w io.Writer, r io.Reader) error {
	dec := json.NewDecoder(escaped(r))
	dec.UseNumber()
	var enc *image.Encoder
	var magic string
	var t *image.Type
	if err := expect(dec, json.Delim('{')); err != nil {
		return err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return notJSON(err)
		}
		switch key {
		case "magic":
			if err := dec.Decode(&magic); err != nil {
				return notJSON(err)
			}
			if t = image.TypeByMagicName(magic); t == nil {
				return fmt.Errorf("magic %q names no kind of image", magic)
			}
		case "entries":
			if t == nil {
				return errors.New(`"magic" has to come before "entries"`)
			}
			enc = image.NewEncoder(w, magic, t)
			if err := encodeEntries(enc, t, dec); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown key %q: an image has magic and entries", key)
		}
	}
	if enc == nil {
		return errors.New(`there are no "entries"`)
	}
	return enc.Flush()
}

func expect(dec *json.Decoder, want json.Token) error {
	got, err := dec.Token()
	if err != nil {
		return notJSON(err)
	}
	if got != want {
		return notJSON(fmt.Errorf("%v where %v is to be", got, want))
	}
	return nil
}

func notJSON(err error) error {
	return fmt.Errorf("cannot read JSON (encode takes what decode writes, not an image): %w", err)
}

func encodeEntries(enc *image.Encoder, t *image.Type, dec *json.Decoder) error {
	if err := expect(dec, json.Delim('[')); err != nil {
		return err
	}
	for n := 0; dec.More(); n++ {
		var e map[string]any
		if err := dec.Decode(&e); err != nil {
			return notJSON(err)
		}
		m := t.New()
		if n == 0 && t.Head != nil {
			m = t.Head()
		}
		extra, hasExtra := e["extra"]
		delete(e, "extra")
		err := fill(m.ProtoReflect(), e)
		if err == nil {
			err = enc.Entry(m)
		}
		if err == nil && hasExtra {
			err = encodeExtra(enc, t, m, extra)
		}
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
	}
	return expect(dec, json.Delim(']'))
}

// encodeExtra writes the payload of entry m.
func encodeExtra(enc *image.Encoder, t *image.Type, m proto.Message, extra any) error {
	switch {
	case t.Messages != nil:
		return encodeMessages(enc, extra)
	case t.Payload == nil:
		return fmt.Errorf("%s has no extra", t.Name)
	}
	b, err := extraBytes(extra)
	if err != nil {
		return fmt.Errorf("extra: %w", err)
	}
	if n := t.Payload(m); n != image.EndOfFile && int64(len(b)) > n {
		return fmt.Errorf("extra has %d bytes where the entry tells of %d", len(b), n)
	}
	return enc.Payload(bytes.NewReader(b))
}

// extraBytes: base64, the queues of a TCP connection, or the values of semaphores.
func extraBytes(extra any) ([]byte, error) {
	switch e := extra.(type) {
	case string:
		return unbase64(e)
	case map[string]any:
		in, ok := e["inq"].(string)
		out, ok2 := e["outq"].(string)
		if !ok || !ok2 {
			return nil, errors.New("inq and outq are to be strings")
		}
		b, err := unbase64(in)
		if err != nil {
			return nil, err
		}
		rest, err := unbase64(out)
		return append(b, rest...), err
	case []any:
		var b []byte
		for _, v := range e {
			n, err := integer(v, nil)
			if err != nil {
				return nil, err
			}
			if n > math.MaxUint16 {
				return nil, fmt.Errorf("%d is no value of a semaphore", n)
			}
			b = binary.LittleEndian.AppendUint16(b, uint16(n))
		}
		return b, nil
	}
	return nil, fmt.Errorf("%T is no payload", extra)
}

func encodeMessages(enc *image.Encoder, extra any) error {
	list, ok := extra.([]any)
	if !ok || len(list)%2 != 0 {
		return errors.New("extra is to be a list of messages and texts in turns")
	}
	for i := 0; i < len(list); i += 2 {
		e, ok := list[i].(map[string]any)
		text, ok2 := list[i+1].(string)
		if !ok || !ok2 {
			return fmt.Errorf("extra %d is no message with a text after it", i)
		}
		m := new(ipc_msg.IpcMsg)
		if err := fill(m.ProtoReflect(), e); err != nil {
			return err
		}
		b, err := unbase64(text)
		if err != nil {
			return err
		}
		if uint32(len(b)) != m.GetMsize() {
			return fmt.Errorf("message %d has %d bytes where msize is %d", i/2, len(b), m.GetMsize())
		}
		if err := enc.Message(m, b); err != nil {
			return err
		}
	}
	return nil
}

// fill sets the fields of m.
func fill(m protoreflect.Message, e map[string]any) error {
	known := 0
	if v, ok := e[unknownFields].(string); ok {
		b, err := unbase64(v)
		if err == nil {
			err = proto.Unmarshal(b, new(emptypb.Empty)) // well-formed, whatever it means
		}
		if err != nil {
			return fmt.Errorf("%s: %w", unknownFields, err)
		}
		m.SetUnknown(b)
		known++
	}
	for _, f := range fieldsOf(m.Descriptor()) {
		v, ok := e[f.name]
		if !ok {
			continue
		}
		known++
		if err := set(m, &f, v); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if known == len(e) {
		return nil
	}
	for k := range e {
		if m.Descriptor().Fields().ByName(protoreflect.Name(k)) == nil {
			return fmt.Errorf("%s has no field %q", m.Descriptor().Name(), k)
		}
	}
	return nil
}

func set(m protoreflect.Message, f *field, v any) error {
	if f.IsList() {
		return setList(m.Mutable(f.FieldDescriptor).List(), f, v)
	}
	if f.Kind() == protoreflect.MessageKind {
		e, ok := v.(map[string]any)
		if !ok {
			return errors.New("is to be an object")
		}
		return fill(m.Mutable(f.FieldDescriptor).Message(), e)
	}
	s, err := scalar(f, v)
	if err == nil {
		m.Set(f.FieldDescriptor, s)
	}
	return err
}

func setList(l protoreflect.List, f *field, v any) error {
	all, ok := v.([]any)
	if !ok {
		return errors.New("is to be a list")
	}
	if f.ip && len(all) > 0 {
		if s, ok := all[0].(string); ok {
			words, err := addressWords(s)
			for _, w := range words {
				l.Append(protoreflect.ValueOfUint32(w))
			}
			return err
		}
	}
	for i, v := range all {
		if f.Kind() == protoreflect.MessageKind {
			e, ok := v.(map[string]any)
			if !ok {
				return fmt.Errorf("%d is to be an object", i)
			}
			if err := fill(l.AppendMutable().Message(), e); err != nil {
				return fmt.Errorf("%d: %w", i, err)
			}
			continue
		}
		s, err := scalar(f, v)
		if err != nil {
			return fmt.Errorf("%d: %w", i, err)
		}
		l.Append(s)
	}
	return nil
}

func scalar(f *field, v any) (protoreflect.Value, error) {
	var none protoreflect.Value
	switch f.Kind() {
	case protoreflect.BoolKind:
		if b, ok := v.(bool); ok {
			return protoreflect.ValueOfBool(b), nil
		}
		n, err := integer(v, f)
		return protoreflect.ValueOfBool(n != 0), err
	case protoreflect.StringKind, protoreflect.BytesKind, protoreflect.EnumKind:
		s, ok := v.(string)
		if !ok && f.Kind() == protoreflect.EnumKind { // one without a name
			n, err := integer(v, f)
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n)), err
		}
		if !ok {
			return none, errors.New("is to be a string")
		}
		return textual(f, unescape(s))
	}
	n, err := integer(v, f)
	if err != nil {
		return none, err
	}
	ok := true
	var out protoreflect.Value
	switch f.Kind() {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		out, ok = protoreflect.ValueOfInt32(int32(n)), uint64(int64(int32(n))) == n
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		out = protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		out, ok = protoreflect.ValueOfUint32(uint32(n)), uint64(uint32(n)) == n
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		out = protoreflect.ValueOfUint64(n)
	default:
		return none, fmt.Errorf("fields of kind %v are not known", f.Kind())
	}
	if !ok {
		return none, fmt.Errorf("%v does not fit", v)
	}
	return out, nil
}

func textual(f *field, s string) (protoreflect.Value, error) {
	switch {
	case f.Kind() == protoreflect.StringKind:
		return protoreflect.ValueOfString(s), nil
	case f.Kind() == protoreflect.EnumKind:
		ev := f.Enum().Values().ByName(protoreflect.Name(s))
		if ev == nil {
			return protoreflect.Value{}, fmt.Errorf("%q is none of %s", s, f.Enum().Name())
		}
		return protoreflect.ValueOfEnum(ev.Number()), nil
	case f.unix:
		return protoreflect.ValueOfBytes(unquote(s)), nil
	}
	b, err := unbase64(s)
	return protoreflect.ValueOfBytes(b), err
}

// integer reads a number, or the text pretty output has for it; f may be nil.
func integer(v any, f *field) (uint64, error) {
	var s string
	switch v := v.(type) {
	case json.Number:
		return parseNumber(v.String())
	case string:
		s = v
	default:
		return 0, errors.New("is to be a number")
	}
	if f == nil {
		return parseNumber(s)
	}
	return f.number(s)
}

// The JSON package replaces lone surrogates, which stand for bytes that are no UTF-8 (see writer.string), so they
// go through it as characters of the private use area, marked by one that no name has.
const mark = '\U0010fffd'

// escaped rewrites \udc80 to \udcff on their own to mark and \u0080 to \u00ff.
func escaped(r io.Reader) io.Reader {
	return &surrogates{r: r}
}

type surrogates struct {
	r       io.Reader
	pending []byte // read and not yet given out; may end inside an escape
	ready   int    // bytes of pending that can go
	err     error
	before  string // the digits of the escape just before; the first half of a pair is in d800 to dbff
}

func (s *surrogates) Read(b []byte) (int, error) {
	for s.ready == 0 {
		if s.err != nil {
			return 0, s.err
		}
		buf := make([]byte, 64<<10)
		n, err := s.r.Read(buf)
		s.err = err
		s.pending = s.rewrite(append(s.pending, buf[:n]...), err != nil)
	}
	n := copy(b, s.pending[:s.ready])
	s.pending = s.pending[n:]
	s.ready -= n
	return n, nil
}

// rewrite sets ready to what is complete; at the end that is everything.
func (s *surrogates) rewrite(in []byte, end bool) []byte {
	var out []byte
	for i := 0; i < len(in); {
		if in[i] != '\\' {
			out = append(out, in[i])
			s.before = ""
			i++
			continue
		}
		if len(in)-i < 6 && !end {
			s.ready = len(out)
			return append(out, in[i:]...)
		}
		n := 2
		if len(in)-i >= 6 && in[i+1] == 'u' {
			n = 6
			hex := strings.ToLower(string(in[i+2 : i+6]))
			before := s.before
			s.before = hex
			switch paired := before >= "d800" && before < "dc00"; {
			case !paired && hex >= "dc80" && hex <= "dcff":
				out = append(out, string(mark)+`\u00`+hex[2:]...)
				i += n
				continue
			case before == "dbff" && hex == "dffd":
				// The mark itself, twice.
				out = append(out, in[i:i+n]...)
				out = append(out, string(mark)...)
				i += n
				continue
			}
		} else {
			s.before = ""
		}
		n = min(n, len(in)-i)
		out = append(out, in[i:i+n]...)
		i += n
	}
	s.ready = len(out)
	return out
}

// unescape puts the bytes back.
func unescape(s string) string {
	if !strings.ContainsRune(s, mark) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		next, m := utf8.DecodeRuneInString(s[n:])
		switch {
		case r == mark && next >= 0x80 && next <= 0xff:
			b.WriteByte(byte(next))
			n += m
		case r == mark && next == mark:
			b.WriteString(s[:n])
			n += m
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}
