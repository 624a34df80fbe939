package arch

import "golang.org/x/sys/cpu"

// HasCRC says whether the processor has the instruction that KindCRC needs: SSE 4.2 on x86, the CRC32 extension on ARM.
func HasCRC() bool { return cpu.X86.HasSSE42 || cpu.ARM64.HasCRC32 }
