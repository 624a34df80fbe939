package arch

// Restart is how a system call that was interrupted by the stop of its thread goes on.
type Restart int

const (
	NoRestart      Restart = iota // in no system call, or in one that has its result
	RestartSame                   // the call is made again with the same arguments
	RestartByBlock                // restart_syscall resumes it from what the kernel remembers (nanosleep, poll, futex with timeout)
)
