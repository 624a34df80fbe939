package arch

// jumpTo is code that goes on at an address. RAX carries nothing into a function of the vdso.
func jumpTo(addr uint64) []byte {
	code := append([]byte{0x48, 0xb8}, le.AppendUint64(nil, addr)...) // movabs $addr, %rax
	return append(code, 0xff, 0xe0)                                   // jmp *%rax
}

// syscallCode is a function that makes one system call with its own arguments.
func syscallCode(nr byte) []byte {
	return []byte{
		0xb8, nr, 0, 0, 0, // mov $nr, %eax
		0x0f, 0x05, // syscall
		0xc3, // ret
	}
}

var (
	callGettimeofday = syscallCode(96)
	callTime         = syscallCode(201)
	callClockGettime = syscallCode(228)
	callClockGetres  = syscallCode(229)
	callGetcpu       = []byte{0xb8, 0x35, 0x01, 0, 0, 0x0f, 0x05, 0xc3} // 309
	callGetrandom    = []byte{0xb8, 0x3e, 0x01, 0, 0, 0x0f, 0x05, 0xc3} // 318
)

// vdsoSyscall is what a function of the vdso is without the vdso.
var vdsoSyscall = map[string][]byte{
	"__vdso_gettimeofday":  callGettimeofday,
	"gettimeofday":         callGettimeofday,
	"__vdso_time":          callTime,
	"time":                 callTime,
	"__vdso_clock_gettime": callClockGettime,
	"clock_gettime":        callClockGettime,
	"__vdso_clock_getres":  callClockGetres,
	"clock_getres":         callClockGetres,
	"__vdso_getcpu":        callGetcpu,
	"getcpu":               callGetcpu,
	"__vdso_getrandom":     callGetrandom,
	"getrandom":            callGetrandom,
}
