package checksum

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

// TestJoin puts checksums of random pieces together.
func TestJoin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	table := crc32.MakeTable(crc32.Castagnoli)
	for range 200 {
		data := make([]byte, random.IntN(5000))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		register := ^uint32(0)
		for left := data; len(left) > 0; {
			n := 1 + random.IntN(len(left))
			of := ^crc32.Update(^uint32(0), table, left[:n]) // begins with a register of 0
			register, left = Join(register, of, uint64(n)), left[n:]
		}
		if want := crc32.Checksum(data, table); ^register != want {
			t.Fatalf("%d bytes: %#x, want %#x", len(data), ^register, want)
		}
	}
	if Join(7, 9, 0) != 7^9 {
		t.Error("no bytes change the register")
	}
}
