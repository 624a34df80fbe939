package netfilter

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// attr makes an attribute of netlink.
func attr(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(sizeofAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(value)&3)...)
}

// TestMessages writes messages one after the other and reads them.
func TestMessages(t *testing.T) {
	for _, align := range []int{1, 4} {
		var b []byte
		want := [][]byte{{1, 2, 3}, {}, {4, 5, 6, 7}}
		for _, body := range want {
			b = append(b, Message(7, body)...)
			b = append(b, make([]byte, -len(b)&(align-1))...)
		}
		var got [][]byte
		err := EachMessage(bytes.NewReader(b), align, func(kind uint16, body []byte) error {
			if kind != 7 {
				t.Errorf("type %d", kind)
			}
			got = append(got, body)
			return nil
		})
		if err != nil || len(got) != len(want) {
			t.Fatalf("aligned to %d: %d messages, %v", align, len(got), err)
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("message %d is %v", i, got[i])
			}
		}
	}
}

// TestBeLiberal sets the flag where it is, and nothing in what makes no sense.
func TestBeLiberal(t *testing.T) {
	const nested = 0x8000
	flags := attr(ctaTCPFlagsReply, 0x02, 0x03)
	body := append(make([]byte, sizeofNfgenmsg), attr(ctaProtoInfo|nested, attr(ctaProtoInfoTCP|nested, flags...)...)...)
	want := bytes.Replace(body, []byte{0x02, 0x03}, []byte{0x02 | tcpFlagBeLiberal, 0x03 | tcpFlagBeLiberal}, 1)
	if beLiberal(body); !bytes.Equal(body, want) {
		t.Errorf("%x and not %x", body, want)
	}
	for _, odd := range [][]byte{nil, {1}, make([]byte, 9), append(make([]byte, sizeofNfgenmsg), attr(ctaProtoInfo, 200, 0, 1, 0)...)} {
		before := bytes.Clone(odd)
		if beLiberal(odd); !bytes.Equal(odd, before) {
			t.Errorf("%x became %x", before, odd)
		}
	}
}

// FuzzMessages reads what nobody wrote.
func FuzzMessages(f *testing.F) {
	f.Add(Message(0x100, append(make([]byte, sizeofNfgenmsg), attr(ctaProtoInfo, attr(ctaProtoInfoTCP, attr(ctaTCPFlagsOriginal, 1, 1)...)...)...)))
	f.Fuzz(func(t *testing.T, b []byte) {
		EachMessage(bytes.NewReader(b), 4, func(_ uint16, body []byte) error {
			beLiberal(body)
			return nil
		})
	})
}
