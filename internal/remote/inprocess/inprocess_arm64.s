#include "textflag.h"

// func enter(code, base, op uintptr)
TEXT ·enter(SB), NOSPLIT|NOFRAME, $0-24
	MOVD code+0(FP), R2
	MOVD base+8(FP), R19
	MOVD op+16(FP), R20
	MOVD RSP, R0
	MOVD R0, ·saved(SB)
	MOVD R30, ·saved+8(SB)
	MOVD g, ·saved+16(SB)
	B    (R2)

TEXT comeBack<>(SB), NOSPLIT|NOFRAME, $0-0
	MOVD ·saved(SB), R0
	MOVD R0, RSP
	MOVD ·saved+8(SB), R30
	MOVD ·saved+16(SB), g
	RET

// func comeBackAddr() uintptr
TEXT ·comeBackAddr(SB), NOSPLIT, $0-8
	MOVD $comeBack<>(SB), R0
	MOVD R0, ret+0(FP)
	RET
