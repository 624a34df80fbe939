package arch

// jumpTo is code that goes on at an address, through the register linkers' veneers use.
func jumpTo(addr uint64) []byte {
	code := []byte{
		0x50, 0x00, 0x00, 0x58, // ldr x16, .+8
		0x00, 0x02, 0x1f, 0xd6, // br x16
	}
	return le.AppendUint64(code, addr)
}

// syscallCode is a function that makes one system call with its own arguments.
func syscallCode(nr uint32) []byte {
	code := le.AppendUint32(nil, 0xd2800008|nr<<5) // mov x8, #nr
	code = append(code, syscallInstr...)           // svc #0
	return append(code, 0xc0, 0x03, 0x5f, 0xd6)    // ret
}

// vdsoSyscall is what a function of the vdso is without the vdso.
var vdsoSyscall = map[string][]byte{
	"__kernel_rt_sigreturn":  syscallCode(139),
	"__kernel_gettimeofday":  syscallCode(169),
	"__kernel_clock_gettime": syscallCode(113),
	"__kernel_clock_getres":  syscallCode(114),
	"__kernel_getrandom":     syscallCode(278),
}
