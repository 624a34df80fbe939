#include "go_asm.h"
#include "textflag.h"

// The interpreter of remote programs. It runs in foreign tasks: no stack, no data, no relocation but one
// PC-relative reference to itself, general registers only (the extended state of the thread stays untouched).
//
//	R12 = base of the program buffer    R13 = current operation
//	BX  = first word of the operation   R14 = its result word
//	DI, SI, DX, R10, R8, R9 = arguments, where the system call wants them
//
// A system call destroys AX, CX and R11.

#define ARG(n, R, L1, L2)             \
	MOVQ (const_OpArg+8*n)(R13), R  \
	BTQ  $(const_BitModes+2*n), BX  \
	JCC  L1                         \
	ADDQ R12, R                     \
L1:                                     \
	BTQ  $(const_BitModes+2*n+1), BX \
	JCC  L2                         \
	MOVQ (R), R                     \
L2:

#define KIND(k, NEXT) \
	CMPL CX, $k \
	JNE  NEXT

TEXT ·blob(SB), NOSPLIT|NOFRAME, $0-0
	TESTQ R12, R12
	JNE   next

	// Exec'ed: the kernel has cleared all registers. The buffer is the page after the code's.
	LEAQ ·blob(SB), R12
	ADDQ $const_BlobPage, R12
	LEAQ const_HdrSize(R12), R13

next:
	MOVQ (R13), BX
	ARG(0, DI, a0, b0)
	ARG(1, SI, a1, b1)
	ARG(2, DX, a2, b2)
	ARG(3, R10, a3, b3)
	ARG(4, R8, a4, b4)
	ARG(5, R9, a5, b5)
	MOVQ const_OpResult(R13), R14
	MOVQ BX, CX
	SHRQ $32, CX
	MOVBLZX CX, CX
	TESTL CX, CX
	JNE  stop

	// KindCall
	MOVWLZX BX, AX
	SYSCALL
	BTQ  $const_BitChild, BX
	JCC  store
	TESTQ AX, AX
	JNE  store
	LEAQ (R12)(R9*1), R13
	JMP  next

store:
	BTQ  $const_BitNoStore, BX
	JCS  check
	MOVQ AX, const_OpResult(R13)

check:
	BTQ  $const_BitExpect, BX
	JCC  must
	CMPQ AX, R14
	JEQ  advance
	JMP  failed

must:
	BTQ  $const_BitMust, BX
	JCC  advance
	CMPQ AX, $-4095
	JCS  advance
	MOVQ BX, CX
	SHRQ $16, CX
	MOVWLZX CX, CX
	NEGQ CX
	CMPQ AX, CX
	JEQ  advance

failed:
	MOVQ AX, const_HdrResult(R12)
	MOVQ $const_StateFailed, R14
	JMP  halt

advance:
	ADDQ $const_OpSize, R13
	JMP  next

stop:
	KIND(const_KindStop, jump)
	MOVQ $const_StateStopped, R14

	// Tell the tracer: by a signal to this very thread, or by a breakpoint. Whoever continues the thread
	// without new registers (a tracer that died) sends it back to its own work through the frame.
halt:
	MOVQ R13, const_HdrOp(R12)
	MOVQ R14, const_HdrState(R12)
	MOVQ const_HdrSignal(R12), SI
	TESTQ SI, SI
	JEQ  breakpoint
	MOVL $const_sysGettid, AX
	SYSCALL
	MOVQ AX, DI
	MOVL $const_sysTkill, AX
	SYSCALL
	MOVQ const_HdrFrame(R12), SP
	MOVL $const_sysRtSigreturn, AX
	SYSCALL

breakpoint:
	INT  $3
	JMP  breakpoint

jump:
	KIND(const_KindJump, add)
	CMPQ R10, $const_CondAlways
	JEQ  taken
	CMPQ R10, $const_CondEq
	JNE  condne
	CMPQ DI, SI
	JEQ  taken
	JMP  advance

condne:
	CMPQ R10, $const_CondNe
	JNE  condbelow
	CMPQ DI, SI
	JNE  taken
	JMP  advance

condbelow:
	CMPQ R10, $const_CondBelow
	JNE  condless
	CMPQ DI, SI
	JCS  taken
	JMP  advance

condless:
	CMPQ DI, SI
	JGE  advance

taken:
	LEAQ (R12)(DX*1), R13
	JMP  next

add:
	KIND(const_KindAdd, sub)
	ADDQ SI, DI
	MOVQ DI, const_OpResult(R13)
	JMP  advance

sub:
	KIND(const_KindSub, store64)
	SUBQ SI, DI
	MOVQ DI, const_OpResult(R13)
	JMP  advance

store64:
	KIND(const_KindStore64, store32)
	MOVQ SI, (DI)
	JMP  advance

store32:
	KIND(const_KindStore32, load32)
	MOVL SI, (DI)
	JMP  advance

load32:
	KIND(const_KindLoad32, copy)
	MOVL (DI), DI
	MOVQ DI, const_OpResult(R13)
	JMP  advance

copy:
	KIND(const_KindCopy, futexwait)
	MOVQ DX, CX
	CLD
	REP; MOVSB
	JMP  advance

futexwait:
	KIND(const_KindFutexWait, futexwake)
	MOVQ SI, R15

sleep:
	MOVL (DI), DX
	CMPL DX, R15
	JEQ  advance
	XORL SI, SI // FUTEX_WAIT
	XORL R10, R10
	MOVL $const_sysFutex, AX
	SYSCALL
	JMP  sleep

futexwake:
	KIND(const_KindFutexWake, sigreturn)
	LOCK
	XADDL SI, (DI)
	MOVL $1, SI // FUTEX_WAKE
	MOVL $0x7fffffff, DX
	MOVL $const_sysFutex, AX
	SYSCALL
	JMP  advance

sigreturn:
	KIND(const_KindSigreturn, goto)
	MOVQ DI, SP
	MOVL $const_sysRtSigreturn, AX
	SYSCALL

goto:
	KIND(const_KindGoto, nonzero)
	MOVQ SI, R12
	LEAQ (R12)(DX*1), R13
	JMP  DI

nonzero:
	KIND(const_KindNonZero, crc)
	XORL AX, AX

scan:
	CMPQ AX, SI
	JCC  scanned
	CMPQ (DI)(AX*1), $0
	JNE  scanned
	ADDQ $8, AX
	JMP  scan

scanned:
	MOVQ AX, const_OpResult(R13)
	JMP  advance

crc:
	KIND(const_KindCRC, bad)
	MOVQ (DX), AX
	MOVQ 8(DX), R8
	MOVQ 16(DX), R9
	MOVQ 24(DX), R10
	LEAQ (SI)(SI*2), R14
	MOVQ SI, CX

crcword:
	CRC32Q (DI), AX // SSE 4.2
	CRC32Q (DI)(SI*1), R8
	CRC32Q (DI)(SI*2), R9
	CRC32Q (DI)(R14*1), R10
	ADDQ $8, DI
	SUBQ $8, CX
	JNE  crcword
	MOVQ AX, (DX)
	MOVQ R8, 8(DX)
	MOVQ R9, 16(DX)
	MOVQ R10, 24(DX)
	JMP  advance

bad:
	MOVQ $const_StateBad, R14
	JMP  halt

	// The end of the code: an undefined instruction, "BLOBEND", an undefined instruction. A following symbol
	// would not do, the linker may move it.
	BYTE $0x0f; BYTE $0x0b
	BYTE $'B'; BYTE $'L'; BYTE $'O'; BYTE $'B'; BYTE $'E'; BYTE $'N'; BYTE $'D'
	BYTE $0x0f; BYTE $0x0b

// func blobAddr() uintptr
TEXT ·blobAddr(SB), NOSPLIT, $0-8
	LEAQ ·blob(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func cloneInto(args *CloneArgs, size uintptr, code, base, op uintptr) (pid int64)
//
// The child never comes back to Go: it runs the interpreter at code. With CLONE_VM it shares the caller's stack
// pointer, which neither it nor the interpreter uses.
TEXT ·cloneInto(SB), NOSPLIT|NOFRAME, $0-48
	MOVQ args+0(FP), DI
	MOVQ size+8(FP), SI
	MOVQ code+16(FP), DX
	MOVQ base+24(FP), R12
	MOVQ op+32(FP), R13
	MOVQ $const_sysClone3, AX
	SYSCALL
	TESTQ AX, AX
	JNE  parent
	JMP  DX

parent:
	MOVQ AX, pid+40(FP)
	RET

// func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL subleaf+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET

// func xgetbv(index uint32) uint64
TEXT ·xgetbv(SB), NOSPLIT, $0-16
	MOVL index+0(FP), CX
	XGETBV
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+8(FP)
	RET
