package arch

func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)
func xgetbv(index uint32) uint64
