#include "textflag.h"

// func enter(code, base, op uintptr)
TEXT ·enter(SB), NOSPLIT|NOFRAME, $0-24
	MOVQ code+0(FP), AX
	MOVQ base+8(FP), R12
	MOVQ op+16(FP), R13
	MOVQ SP, ·saved(SB)
	JMP  AX

TEXT comeBack<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ ·saved(SB), SP
	RET

// func comeBackAddr() uintptr
TEXT ·comeBackAddr(SB), NOSPLIT, $0-8
	LEAQ comeBack<>(SB), AX
	MOVQ AX, ret+0(FP)
	RET
