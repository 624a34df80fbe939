package arch

import "encoding/binary"

var le = binary.LittleEndian

func words32(b []byte, n int) []uint32 {
	w := make([]uint32, n)
	for i := range w {
		w[i] = le.Uint32(b[4*i:])
	}
	return w
}

func words64(b []byte, n int) []uint64 {
	w := make([]uint64, n)
	for i := range w {
		w[i] = le.Uint64(b[8*i:])
	}
	return w
}

func putWords32(b []byte, w []uint32) {
	for i, v := range w {
		le.PutUint32(b[4*i:], v)
	}
}

func putWords64(b []byte, w []uint64) {
	for i, v := range w {
		le.PutUint64(b[8*i:], v)
	}
}
