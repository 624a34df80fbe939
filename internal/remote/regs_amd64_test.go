package remote

import "cryo/arch"

// returnRegs are registers to go on with at pc in this process.
func returnRegs(pc uint64) arch.Regs { return arch.Regs{IP: pc, CS: 0x33, SS: 0x2b, Flags: 0x202} }

// plainXState is the state the calling conventions ask for.
func plainXState() []byte {
	x := make([]byte, arch.XStateMax())
	le.PutUint16(x, 0x37f)       // x87 control word
	le.PutUint32(x[24:], 0x1f80) // MXCSR
	return x
}
