package crit

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"

	"cryo/internal/image"

	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	ipc_sem "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-sem"
	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Options of showing an image.
type Options struct {
	Pretty    bool // over many lines, numbers in the notation of their field
	NoPayload bool // of payloads only the size
}

// Decode writes the image that dec reads as JSON. A newline is not added.
func Decode(w io.Writer, dec *image.Decoder, opt Options) error {
	d := &decoder{Decoder: dec, opt: opt, w: &writer{Writer: bufio.NewWriterSize(w, 64<<10), indent: opt.Pretty}}
	d.w.open('{')
	d.w.key("magic")
	d.w.string(dec.Type().Name)
	d.w.key("entries")
	d.w.open('[')
	for {
		m, err := dec.Next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = d.entry(m)
		}
		if err != nil {
			d.w.Flush()
			return err
		}
	}
	d.w.close(']')
	d.w.close('}')
	return d.w.Flush()
}

type decoder struct {
	*image.Decoder
	opt Options
	w   *writer
}

func (d *decoder) entry(m proto.Message) error {
	d.w.member()
	d.w.open('{')
	d.fields(m.ProtoReflect(), d.opt.Pretty, false)
	err := d.extra(m)
	d.w.close('}')
	return err
}

// extra writes the payload of entry m.
func (d *decoder) extra(m proto.Message) error {
	t := d.Type()
	if t.Payload == nil && t.Messages == nil {
		return nil
	}
	switch e := m.(type) {
	case *ghost_file.GhostFileEntry:
		// The bytes follow with the chunks, where there are chunks.
		if e.GetChunks() || d.opt.NoPayload {
			return nil
		}
	case *ghost_file.GhostChunkEntry:
		if d.opt.NoPayload {
			return nil
		}
	}
	d.w.key("extra")
	if d.opt.NoPayload {
		n, err := d.payloadSize(m)
		d.w.string(fmt.Sprintf("... <%s>", humanSize(n)))
		return err
	}
	switch e := m.(type) {
	case *tcp_stream.TcpStreamEntry:
		return d.queues(e)
	case *ipc_sem.IpcSemEntry:
		return d.semaphores(e)
	case *ipc_msg.IpcMsgEntry:
		return d.messages()
	case *ipc_shm.IpcShmEntry:
		if !e.GetInPagemaps() {
			return d.w.base64(io.LimitReader(d.Payload(), int64(e.GetSize())))
		}
	}
	return d.w.base64(d.Payload())
}

func (d *decoder) queues(e *tcp_stream.TcpStreamEntry) error {
	d.w.open('{')
	d.w.key("inq")
	if err := d.w.base64(io.LimitReader(d.Payload(), int64(e.GetInqLen()))); err != nil {
		return err
	}
	d.w.key("outq")
	err := d.w.base64(d.Payload())
	d.w.close('}')
	return err
}

func (d *decoder) semaphores(e *ipc_sem.IpcSemEntry) error {
	d.w.open('[')
	r := bufio.NewReader(d.Payload())
	for range e.GetNsems() {
		var b [2]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		d.w.member()
		fmt.Fprint(d.w, binary.LittleEndian.Uint16(b[:]))
	}
	d.w.close(']')
	return nil
}

// messages writes message and text in turns. Numbers in there are never pretty.
func (d *decoder) messages() error {
	d.w.open('[')
	for {
		m := new(ipc_msg.IpcMsg)
		text, err := d.Message(m, m.GetMsize)
		if err == io.EOF {
			d.w.close(']')
			return nil
		}
		if err != nil {
			return err
		}
		d.w.member()
		d.w.open('{')
		d.fields(m.ProtoReflect(), false, false)
		d.w.close('}')
		d.w.member()
		d.w.base64(bytes.NewReader(text))
	}
}

// payloadSize is how many bytes of payload entry m has, without padding.
func (d *decoder) payloadSize(m proto.Message) (int64, error) {
	switch e := m.(type) {
	case *ipc_sem.IpcSemEntry:
		return 2 * int64(e.GetNsems()), nil
	case *ipc_shm.IpcShmEntry:
		return int64(e.GetSize()), nil
	case *ipc_msg.IpcMsgEntry:
		var n int64
		for {
			m := new(ipc_msg.IpcMsg)
			text, err := d.Message(m, m.GetMsize)
			if err == io.EOF {
				return n, nil
			}
			if err != nil {
				return 0, err
			}
			n += int64(proto.Size(m) + len(text))
		}
	}
	return d.PayloadLen(), nil
}

// humanSize shows n bytes with a unit.
func humanSize(n int64) string {
	v := float64(n)
	for _, unit := range []string{"", "K", "M", "G", "T", "P", "E"} {
		if v < 1024 {
			if v == float64(int64(v)) {
				return fmt.Sprintf("%d%sB", int64(v), unit)
			}
			return fmt.Sprintf("%.1f%sB", v, unit)
		}
		v /= 1024
	}
	return fmt.Sprintf("%.1fZB", v)
}

// fields writes what is set in m. hex says that an outer field is marked so: all numbers inside are too.
func (d *decoder) fields(m protoreflect.Message, pretty, hex bool) {
	for _, f := range fieldsOf(m.Descriptor()) {
		if !m.Has(f.FieldDescriptor) {
			continue
		}
		d.w.key(f.name)
		v := m.Get(f.FieldDescriptor)
		if !f.IsList() {
			d.value(&f, v, pretty, hex)
			continue
		}
		d.w.open('[')
		if addr := ""; pretty && f.ip {
			if addr = address(v.List()); addr != "" {
				d.w.member()
				d.w.string(addr)
				d.w.close(']')
				continue
			}
		}
		for i := range v.List().Len() {
			d.w.member()
			d.value(&f, v.List().Get(i), pretty, hex)
		}
		d.w.close(']')
	}
	if b := m.GetUnknown(); len(b) > 0 {
		d.w.key(unknownFields)
		d.w.base64(bytes.NewReader(b))
	}
}

// unknownFields is the key of what a newer writer put into a message: without it, decoding and encoding would lose
// that. criu's crit ignores it.
const unknownFields = "unknown_fields"

func (d *decoder) value(f *field, v protoreflect.Value, pretty, hex bool) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		d.w.open('{')
		d.fields(v.Message(), pretty, hex || f.hex)
		d.w.close('}')
	case protoreflect.BytesKind:
		if f.unix {
			d.w.string(quote(v.Bytes()))
		} else {
			d.w.base64(bytes.NewReader(v.Bytes()))
		}
	case protoreflect.StringKind:
		d.w.string(v.String())
	case protoreflect.BoolKind:
		d.w.WriteString(strconv.FormatBool(v.Bool()))
	case protoreflect.EnumKind:
		if ev := f.Enum().Values().ByNumber(v.Enum()); ev != nil {
			d.w.string(string(ev.Name()))
		} else {
			d.w.WriteString(strconv.Itoa(int(v.Enum())))
		}
	default:
		d.number(f, v, pretty, hex)
	}
}

func (d *decoder) number(f *field, v protoreflect.Value, pretty, hex bool) {
	var bits uint64
	negative := false
	switch n := v.Interface().(type) {
	case int32:
		bits, negative = uint64(int64(n)), n < 0
	case int64:
		bits, negative = uint64(n), n < 0
	case uint32:
		bits = uint64(n)
	case uint64:
		bits = n
	}
	if pretty {
		s := f.text(bits, negative, hex)
		// A flags field without flags is an empty string; other fields without a text are numbers.
		if s != "" || f.flags != "" && !hex && !f.hex {
			d.w.string(s)
			return
		}
	}
	if negative {
		d.w.WriteString(strconv.FormatInt(int64(bits), 10))
	} else {
		d.w.WriteString(strconv.FormatUint(bits, 10))
	}
}

// Info writes what kind of image dec reads and how many entries it has, not counting the head of a page map.
func Info(w io.Writer, dec *image.Decoder) error {
	n := 0
	if dec.Type().Name == "PAGEMAP" {
		n = -1
	}
	for {
		_, err := dec.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		n++
	}
	out := &writer{Writer: bufio.NewWriter(w), indent: true}
	out.open('{')
	out.key("magic")
	out.string(dec.Type().Name)
	out.key("count")
	fmt.Fprint(out, n)
	out.close('}')
	out.WriteByte('\n')
	return out.Flush()
}
