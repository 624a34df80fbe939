package cpuinfo

import "sync"

// bitNames names the capability bits that decide, by word*32+bit as Linux numbers them. Those of instructions that a
// program may find with cpuid and use are what the capability "ins" compares.
var bitNames = sync.OnceValue(func() map[int]string {
	return map[int]string{
		0: "fpu", 4: "tsc", 8: "cmpxchg8b", 11: "sysenter", 15: "cmov", 19: "clflush", 23: "mmx", 24: "fxsr", 25: "sse", 26: "sse2",

		1*32 + 11: "syscall", 1*32 + 22: "mmxext", 1*32 + 27: "rdtscp", 1*32 + 30: "3dnowext", 1*32 + 31: "3dnow",

		3*32 + 16: "rep_good", 3*32 + 20: "nopl",

		4*32 + 0: "sse3", 4*32 + 1: "pclmulqdq", 4*32 + 3: "mwait", 4*32 + 9: "ssse3", 4*32 + 13: "cmpxchg16b", 4*32 + 19: "sse4_1",
		4*32 + 20: "sse4_2", 4*32 + 22: "movbe", 4*32 + 23: "popcnt", 4*32 + 25: "aes", 4*32 + 26: "xsave", 4*32 + 27: "osxsave",
		4*32 + 28: "avx", 4*32 + 29: "f16c", 4*32 + 30: "rdrand",

		6*32 + 5: "abm", 6*32 + 6: "sse4a", 6*32 + 7: "misalignsse", 6*32 + 8: "prefetchw", 6*32 + 11: "xop", 6*32 + 16: "fma4", 6*32 + 21: "tbm",

		9*32 + 0: "fsgsbase", 9*32 + 3: "bmi1", 9*32 + 4: "hle", 9*32 + 5: "avx2", 9*32 + 8: "bmi2", 9*32 + 9: "erms", 9*32 + 11: "rtm",
		9*32 + 14: "mpx", 9*32 + 16: "avx512f", 9*32 + 17: "avx512dq", 9*32 + 18: "rdseed", 9*32 + 19: "adx", 9*32 + 23: "clflushopt",
		9*32 + 26: "avx512pf", 9*32 + 27: "avx512er", 9*32 + 28: "avx512cd", 9*32 + 29: "sha", 9*32 + 30: "avx512bw", 9*32 + 31: "avx512vl",

		10*32 + 0: "xsaveopt", 10*32 + 1: "xsavec", 10*32 + 2: "xgetbv1",

		11*32 + 1: "avx512vbmi", 11*32 + 6: "avx512_vbmi2", 11*32 + 8: "gfni", 11*32 + 9: "vaes", 11*32 + 10: "vpclmulqdq",
		11*32 + 11: "avx512_vnni", 11*32 + 12: "avx512_bitalg", 11*32 + 13: "tme", 11*32 + 14: "avx512_vpopcntdq", 11*32 + 22: "rdpid",

		13*32 + 0: "clzero",

		18*32 + 2: "avx512_4vnniw", 18*32 + 3: "avx512_4fmaps",
	}
})

// instructions are the bits of bitNames by word.
var instructions = sync.OnceValue(func() map[int]uint32 {
	words := map[int]uint32{}
	for bit := range bitNames() {
		words[bit/32] |= 1 << (bit % 32)
	}
	return words
})

// stateBits are the ways to save extended state: fpu, fxsr, osxsave, xsaves.
var stateBits = map[int]uint32{0: 1<<0 | 1<<24, 4: 1 << 27, 10: 1 << 3}
