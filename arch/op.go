package arch

// The binary form of a remote program, shared between the interpreter (blob_*.s reads these names through
// go_asm.h) and the builder in package remote.
//
// A program lies in one buffer: a header, then operations of OpSize bytes, then data. Register "base" of the
// interpreter holds the buffer's address, register "op" that of the current operation. Every address in an
// operation is relative to base unless said otherwise, so a program can be assembled before its place is known.

// Header of a program buffer, offsets in bytes.
const (
	HdrState  = 0  // how the program ended: StateRunning, StateStopped, StateFailed, StateBad
	HdrOp     = 8  // address of the operation that stopped the program
	HdrResult = 16 // result of a failed operation
	HdrSignal = 24 // signal a stop is made with; 0: breakpoint instruction
	HdrFrame  = 32 // address of the signal frame to return through when nobody waits for the stop; 0: none
	HdrSize   = 64
)

// Values of the header's state word.
const (
	StateRunning = 0
	StateStopped = 1 // a KindStop operation
	StateFailed  = 2 // a checked call gave another result than it had to
	StateBad     = 3 // an operation of unknown kind
)

// One operation, offsets in bytes.
const (
	OpNr     = 0 // uint16: system call number
	OpErrno  = 2 // uint16: error number FlagMust lets through
	OpKind   = 4 // uint8: Kind*
	OpFlags  = 5 // uint8: Flag*
	OpModes  = 6 // uint16: two bits an argument: ModeBase, ModeLoad
	OpArg    = 8 // six uint64
	OpResult = 56
	OpSize   = 64

	OpArgs = 6
)

// How an argument becomes a value: the stored number, plus base if ModeBase, then loaded from that address if
// ModeLoad.
const (
	ModeBase = 1
	ModeLoad = 2
)

// Flags of an operation. The assembler tests them as bits of the operation's first word, hence the Bit names.
const (
	FlagMust    = 1 << 0 // fail on an error result other than OpErrno
	FlagNoStore = 1 << 1 // leave the result word alone
	FlagChild   = 1 << 2 // where the call returns 0, go on at argument 5
	FlagExpect  = 1 << 3 // fail unless the result equals the word in OpResult

	BitMust    = 40
	BitNoStore = 41
	BitChild   = 42
	BitExpect  = 43
	BitModes   = 48
)

// Kinds of operations. a0..a5 are the arguments.
const (
	KindCall      = 0  // system call OpNr(a0..a5); on success of FlagChild the child goes on at a5
	KindStop      = 1  // tell the tracer; when it continues the thread as it is, leave by the header's frame
	KindJump      = 2  // if a0 <cond a3> a1 go on at base+a2
	KindAdd       = 3  // result = a0 + a1
	KindSub       = 4  // result = a0 - a1
	KindStore64   = 5  // *(uint64*)a0 = a1
	KindStore32   = 6  // *(uint32*)a0 = a1
	KindLoad32    = 7  // result = *(uint32*)a0
	KindCopy      = 8  // copy a2 bytes from a1 to a0
	KindFutexWait = 9  // sleep while *(uint32*)a0 != a1
	KindFutexWake = 10 // *(uint32*)a0 += a1, wake all its sleepers
	KindSigreturn = 11 // rt_sigreturn with the stack pointer at a0
	KindGoto      = 12 // go on in the copy of the interpreter at a0 with base a1 and operation a1+a2
	KindNonZero   = 13 // result = offset of the first non-zero word in a1 bytes from a0, a1 when all are zero
	KindCRC       = 14 // registers of a CRC-32C: four words at a2, of four lanes of a1 bytes, whole words, from a0 on; see HasCRC
)

// Conditions of KindJump.
const (
	CondAlways = 0
	CondEq     = 1
	CondNe     = 2
	CondBelow  = 3 // unsigned
	CondLess   = 4 // signed
)
