package wire_test

import (
	"testing"

	"cryo/internal/wire"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"
)

// manyMappings is what a task with 10,000 mappings has for an image.
func manyMappings() *mm.MmEntry {
	n := proto.Uint64(1 << 40)
	e := &mm.MmEntry{
		MmStartCode: n, MmEndCode: n, MmStartData: n, MmEndData: n, MmStartStack: n, MmStartBrk: n, MmBrk: n,
		MmArgStart: n, MmArgEnd: n, MmEnvStart: n, MmEnvEnd: n, ExeFileId: proto.Uint32(7),
	}
	for range 10_000 {
		e.Vmas = append(e.Vmas, &vma.VmaEntry{Start: n, End: n, Pgoff: n, Shmid: n, Prot: proto.Uint32(3), Flags: proto.Uint32(2),
			Status: proto.Uint32(1), Fd: proto.Int64(-1)})
	}
	return e
}

func BenchmarkAppend(b *testing.B) {
	m := manyMappings()
	for name, encode := range map[string]func([]byte, proto.Message) ([]byte, error){
		"wire": wire.Append, "proto": proto.MarshalOptions{Deterministic: true}.MarshalAppend,
	} {
		b.Run(name, func(b *testing.B) {
			var buf []byte
			for b.Loop() {
				var err error
				if buf, err = encode(buf[:0], m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	text, err := wire.Append(nil, manyMappings())
	if err != nil {
		b.Fatal(err)
	}
	for name, decode := range map[string]func([]byte, proto.Message) error{"wire": wire.Unmarshal, "proto": proto.Unmarshal} {
		b.Run(name, func(b *testing.B) {
			var m mm.MmEntry
			for b.Loop() {
				if err := decode(text, &m); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
