package image

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// lz4Samples are blocks of all kinds, the smallest and those that nothing can be done about among them.
func lz4Samples() map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	var text bytes.Buffer
	for i := range 5000 {
		fmt.Fprintf(&text, "line %d of %d, %x\n", i, rnd.IntN(100), rnd.Uint32()>>20)
	}
	mixed := bytes.Clone(noise)
	for i := 0; i+600 < len(mixed); i += 1000 {
		copy(mixed[i:], text.Bytes()[i/8:i/8+600])
	}
	return map[string][]byte{
		"noise": noise, "text": text.Bytes(), "mixed": mixed, "zeros": make([]byte, 256<<10), "one byte": bytes.Repeat([]byte{7}, 70000),
		"far": append(append(bytes.Clone(noise), make([]byte, 100)...), noise...), "short": []byte("abcabcabcabcabc"), "few": {1, 2}, "empty": {},
	}
}

// TestFastLZ4 has the library expand what was compressed, at all accelerations.
func TestFastLZ4(t *testing.T) {
	for name, plain := range lz4Samples() {
		last := 0
		for _, acceleration := range []int{2, 3, 8, 100, 1 << 16} {
			packed := LZ4.Shrink(nil, plain, acceleration)
			if packed == nil {
				continue
			}
			if len(packed) >= len(plain) {
				t.Errorf("%s by %d: %d bytes of %d", name, acceleration, len(packed), len(plain))
			}
			if got := make([]byte, len(plain)); LZ4.expand(got, packed) != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s by %d: it expands to something else", name, acceleration)
			}
			last = len(packed)
		}
		if last == 0 && (name == "text" || name == "zeros" || name == "one byte") {
			t.Errorf("%s is never compressed", name)
		}
	}
	text := lz4Samples()["text"]
	usual, fast, faster := len(LZ4.Shrink(nil, text, 1)), len(LZ4.Shrink(nil, text, 2)), len(LZ4.Shrink(nil, text, 20))
	if fast < usual/2 || fast > 2*usual || faster <= fast {
		t.Errorf("%d bytes of text are %d by 1, %d by 2, %d by 20", len(text), usual, fast, faster)
	}
}

func FuzzFastLZ4(f *testing.F) {
	for _, plain := range lz4Samples() {
		f.Add(plain[:min(len(plain), 4096)], 2)
	}
	f.Fuzz(func(t *testing.T, plain []byte, acceleration int) {
		packed := fastLZ4(nil, plain, 1+acceleration&0xffff)
		if packed == nil {
			return
		}
		got := make([]byte, len(plain))
		if n, err := lz4.UncompressBlock(packed, got); err != nil || !bytes.Equal(got[:n], plain) {
			t.Fatalf("%d bytes: %d, %v", len(plain), n, err)
		}
	})
}

func BenchmarkFastLZ4(b *testing.B) {
	text := lz4Samples()["text"]
	for _, acceleration := range []int{1, 2, 8, 64} {
		b.Run(fmt.Sprint(acceleration), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			var packed []byte
			for range b.N {
				packed = LZ4.Shrink(packed, text, acceleration)
			}
			b.ReportMetric(float64(len(packed))/float64(len(text)), "size")
		})
	}
}
