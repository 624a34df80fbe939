#include "go_asm.h"
#include "textflag.h"

// The interpreter of remote programs; see blob_amd64.s for what it may and may not do.
//
//	R19 = base of the program buffer    R20 = current operation
//	R21 = first word of the operation   R22 = its result word
//	R0 to R5 = arguments, where the system call wants them
//
// A system call destroys R0 only.

#define ARG(n, R, L1, L2)                          \
	MOVD (const_OpArg+8*n)(R20), R           \
	TBZ  $(const_BitModes+2*n), R21, L1      \
	ADD  R19, R                              \
L1:                                              \
	TBZ  $(const_BitModes+2*n+1), R21, L2    \
	MOVD (R), R                              \
L2:

#define KIND(k, NEXT) \
	CMP $k, R9 \
	BNE NEXT

TEXT ·blob(SB), NOSPLIT|NOFRAME, $0-0
start:
	CBNZ R19, next

	// Exec'ed: the kernel has cleared all registers. The buffer is the page after the code's.
	ADR  start, R19
	ADD  $const_BlobPage, R19
	ADD  $const_HdrSize, R19, R20

next:
	MOVD (R20), R21
	ARG(0, R0, a0, b0)
	ARG(1, R1, a1, b1)
	ARG(2, R2, a2, b2)
	ARG(3, R3, a3, b3)
	ARG(4, R4, a4, b4)
	ARG(5, R5, a5, b5)
	MOVD const_OpResult(R20), R22
	UBFX $32, R21, $8, R9
	CBNZ R9, stop

	// KindCall
	UBFX $0, R21, $16, R8
	SVC
	TBZ  $const_BitChild, R21, store
	CBNZ R0, store
	ADD  R5, R19, R20
	B    next

store:
	TBNZ $const_BitNoStore, R21, check
	MOVD R0, const_OpResult(R20)

check:
	TBZ  $const_BitExpect, R21, must
	CMP  R22, R0
	BEQ  advance
	B    failed

must:
	TBZ  $const_BitMust, R21, advance
	CMN  $4095, R0
	BLO  advance
	UBFX $16, R21, $16, R9
	NEG  R9, R9
	CMP  R9, R0
	BEQ  advance

failed:
	MOVD R0, const_HdrResult(R19)
	MOVD $const_StateFailed, R22
	B    halt

advance:
	ADD  $const_OpSize, R20
	B    next

stop:
	KIND(const_KindStop, jump)
	MOVD $const_StateStopped, R22

	// Tell the tracer: by a signal to this very thread, or by a breakpoint. Whoever continues the thread
	// without new registers (a tracer that died) sends it back to its own work through the frame.
halt:
	MOVD R20, const_HdrOp(R19)
	MOVD R22, const_HdrState(R19)
	MOVD const_HdrSignal(R19), R1
	CBZ  R1, breakpoint
	MOVD $const_sysGettid, R8
	SVC
	MOVD $const_sysTkill, R8
	SVC
	MOVD const_HdrFrame(R19), R0
	MOVD R0, RSP
	MOVD $const_sysRtSigreturn, R8
	SVC

breakpoint:
	BRK  $0
	B    breakpoint

jump:
	KIND(const_KindJump, add)
	CMP  $const_CondAlways, R3
	BEQ  taken
	CMP  $const_CondEq, R3
	BNE  condne
	CMP  R1, R0
	BEQ  taken
	B    advance

condne:
	CMP  $const_CondNe, R3
	BNE  condbelow
	CMP  R1, R0
	BNE  taken
	B    advance

condbelow:
	CMP  $const_CondBelow, R3
	BNE  condless
	CMP  R1, R0
	BLO  taken
	B    advance

condless:
	CMP  R1, R0
	BGE  advance

taken:
	ADD  R2, R19, R20
	B    next

add:
	KIND(const_KindAdd, sub)
	ADD  R1, R0
	MOVD R0, const_OpResult(R20)
	B    advance

sub:
	KIND(const_KindSub, store64)
	SUB  R1, R0
	MOVD R0, const_OpResult(R20)
	B    advance

store64:
	KIND(const_KindStore64, store32)
	MOVD R1, (R0)
	B    advance

store32:
	KIND(const_KindStore32, load32)
	MOVW R1, (R0)
	B    advance

load32:
	KIND(const_KindLoad32, copy)
	MOVWU (R0), R0
	MOVD R0, const_OpResult(R20)
	B    advance

copy:
	KIND(const_KindCopy, futexwait)

copy8:
	CMP  $8, R2
	BLO  copy1
	MOVD.P 8(R1), R9
	MOVD.P R9, 8(R0)
	SUB  $8, R2
	B    copy8

copy1:
	CBZ  R2, advance
	MOVBU.P 1(R1), R9
	MOVB.P R9, 1(R0)
	SUB  $1, R2
	B    copy1

futexwait:
	KIND(const_KindFutexWait, futexwake)
	MOVD R0, R10
	MOVWU R1, R11

sleep:
	LDARW (R10), R2
	CMPW R2, R11
	BEQ  advance
	MOVD R10, R0
	MOVD ZR, R1 // FUTEX_WAIT
	MOVD ZR, R3
	MOVD $const_sysFutex, R8
	SVC
	B    sleep

futexwake:
	KIND(const_KindFutexWake, sigreturn)

again:
	LDAXRW (R0), R9
	ADDW R1, R9
	STLXRW R9, (R0), R10
	CBNZW R10, again
	MOVD $1, R1 // FUTEX_WAKE
	MOVD $0x7fffffff, R2
	MOVD $const_sysFutex, R8
	SVC
	B    advance

sigreturn:
	KIND(const_KindSigreturn, goto)
	MOVD R0, RSP
	MOVD $const_sysRtSigreturn, R8
	SVC

goto:
	KIND(const_KindGoto, nonzero)
	MOVD R1, R19
	ADD  R2, R19, R20
	B    (R0)

nonzero:
	KIND(const_KindNonZero, crc)
	MOVD ZR, R9

scan:
	CMP  R1, R9
	BHS  scanned
	MOVD (R0)(R9), R10
	CBNZ R10, scanned
	ADD  $8, R9
	B    scan

scanned:
	MOVD R9, const_OpResult(R20)
	B    advance

crc:
	KIND(const_KindCRC, bad)
	ADD  R1, R0, R3
	ADD  R1, R3, R4
	ADD  R1, R4, R5
	LDP  (R2), (R9, R10)
	LDP  16(R2), (R11, R12)

crcword:
	MOVD.P 8(R0), R6
	CRC32CX R6, R9
	MOVD.P 8(R3), R6
	CRC32CX R6, R10
	MOVD.P 8(R4), R6
	CRC32CX R6, R11
	MOVD.P 8(R5), R6
	CRC32CX R6, R12
	SUBS $8, R1
	BNE  crcword
	STP  (R9, R10), (R2)
	STP  (R11, R12), 16(R2)
	B    advance

bad:
	MOVD $const_StateBad, R22
	B    halt

	// The end of the code: an undefined instruction and "BLOBEND".
	WORD $0x0000dead
	WORD $0x424f4c42
	WORD $0x00444e45

// func blobAddr() uintptr
TEXT ·blobAddr(SB), NOSPLIT, $0-8
	MOVD $·blob(SB), R0
	MOVD R0, ret+0(FP)
	RET

// func cloneInto(args *CloneArgs, size uintptr, code, base, op uintptr) (pid int64)
//
// The child never comes back to Go: it runs the interpreter at code. R19 and R20 are the caller's to save.
TEXT ·cloneInto(SB), NOSPLIT|NOFRAME, $0-48
	MOVD args+0(FP), R0
	MOVD size+8(FP), R1
	MOVD code+16(FP), R2
	MOVD base+24(FP), R19
	MOVD op+32(FP), R20
	MOVD $const_sysClone3, R8
	SVC
	CBNZ R0, parent
	B    (R2)

parent:
	MOVD R0, pid+40(FP)
	RET
