package remote

import "cryo/arch"

// returnRegs are registers to go on with at pc in this process.
func returnRegs(pc uint64) arch.Regs { return arch.Regs{IP: pc} }

func plainXState() []byte { return make([]byte, arch.XStateMax()) }
