package features

import (
	"fmt"
	"os"
	"unsafe"

	"cryo/internal/options"

	"golang.org/x/sys/unix"
)

// What is needed to look into tasks and to make them again.
var (
	MapFiles = define("map_files", Required, "3.3", "open files behind mappings",
		func() error { return access("/proc/self/map_files", unix.R_OK) })
	Kcmp = define("kcmp", Required, "3.5", "compare what two tasks share",
		func() error { return kcmp(kcmpVM, 0, 0) })
	KcmpEpoll = define("kcmp_epoll", Extra, "4.13", "tell which file an epoll watches", probeKcmpEpoll)
	PrctlMM   = define("prctl_mm_map", Required, "3.18", "set the areas of a task's memory in one step", probePrctlMM)
	SetTid    = define("clone3_set_tid", Required, "5.5", "make tasks with the pids they had", probeSetTid)
	// CloneIntoCgroup: clone3 puts the child in a control group.
	CloneIntoCgroup = define("clone_into_cgroup", ByName, "5.7", "make tasks in another control group", probeCloneIntoCgroup)
	PtraceSiginfo   = define("ptrace_peeksiginfo", Required, "3.10", "read pending signals and signal masks", probePeekSiginfo)
	RseqConf        = define("get_rseq_conf", Extra, "5.13", "read where a thread has its restartable sequences", probeRseqConf)
	Breakpoints     = define("breakpoints", ByName, "", "stop a task at an address by the processor", probeBreakpoints)
	PidfdGetfd      = define("pidfd_getfd", ByName, "5.6", "take a descriptor out of a task", probePidfdGetfd)
	PidfdStore      = define("pidfd_store", Extra, "5.6", "recognise tasks between pre-dumps", probePidfdGetfd).
			usedBy(options.Incremental)
	PosixTimers = define("posix_timers", Extra, "3.10", "list the POSIX timers of a task",
		func() error { return access("/proc/self/timers", unix.R_OK) })
	TimerIDs = define("timer_cr_ids", Extra, "6.15", "make POSIX timers with the ids they had", probeTimerIDs)
	TimerFD  = define("timerfd", Extra, "3.18", "set expirations of a timerfd", probeTimerFD)
	NSPid    = define("ns_pid", Extra, "4.1", "pids of a task in its own namespaces", probeNSPid)
	TimeNS   = define("timens", Extra, "5.6", "time namespaces",
		func() error { return access("/proc/self/timens_offsets", unix.F_OK) })
	UserNS   = define("userns", Extra, "3.8", "user namespaces", probeUserNS)
	CgroupNS = define("cgroupns", Extra, "4.6", "control group namespaces",
		func() error { return access("/proc/self/ns/cgroup", unix.F_OK) })
	CloseRange = define("close_range_unshare", ByName, "5.9", "close all descriptors in one step", probeCloseRange)
	CompatTask = define("compat_cr", Experimental, "4.12", "32-bit tasks", probeMapVdso32).usedBy(options.Compat)
	MapVdso    = define("can_map_vdso", Extra, "4.8", "map the vdso where it was", probeMapVdso)
)

func access(path string, mode uint32) error {
	if err := unix.Access(path, mode); err != nil {
		return &os.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

// Types of kcmp.
const (
	kcmpVM       = 1
	kcmpEpollTFD = 7
)

func kcmp(kind int, a, b uintptr) error {
	pid := uintptr(os.Getpid())
	order, _, errno := unix.RawSyscall6(unix.SYS_KCMP, pid, pid, uintptr(kind), a, b, 0)
	if errno != 0 {
		return os.NewSyscallError("kcmp", errno)
	}
	if order != 0 {
		return fmt.Errorf("kcmp finds a difference between equals: %d", order)
	}
	return nil
}

func probeKcmpEpoll() error {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(ep)
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	defer unix.Close(ev)
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, ev, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	slot := struct{ efd, tfd, toff uint32 }{uint32(ep), uint32(ev), 0}
	return kcmp(kcmpEpollTFD, uintptr(ev), uintptr(unsafe.Pointer(&slot)))
}

// probePrctlMM asks for the size of the structure, which changes nothing.
func probePrctlMM() error {
	var size uint32
	err := unix.Prctl(unix.PR_SET_MM, unix.PR_SET_MM_MAP_SIZE, uintptr(unsafe.Pointer(&size)), 0, 0)
	return os.NewSyscallError("prctl(PR_SET_MM_MAP_SIZE)", err)
}

// cloneArgs is struct clone_args up to cgroup, of Linux 5.7.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64
}

const (
	cloneArgsSet    = 80 // up to setTidSize, Linux 5.5
	cloneArgsCgroup = 88
)

// clone3 makes a call that is to fail.
func clone3(args *cloneArgs, size uintptr) error {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), size, 0)
	if errno != 0 {
		return errno
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	reap(int(pid))
	return nil
}

// probeSetTid asks for a child of pid 1, which every pid namespace has already.
func probeSetTid() error {
	tids := [1]int32{1}
	args := &cloneArgs{exitSignal: uint64(unix.SIGCHLD), setTid: uint64(uintptr(unsafe.Pointer(&tids))), setTidSize: 1}
	return refusedWith("clone3", clone3(args, cloneArgsSet), unix.EEXIST)
}

// probeCloneIntoCgroup asks for a child in a control group that is no open file.
func probeCloneIntoCgroup() error {
	args := &cloneArgs{exitSignal: uint64(unix.SIGCHLD), flags: unix.CLONE_INTO_CGROUP, cgroup: 1<<31 - 1}
	return refusedWith("clone3", clone3(args, cloneArgsCgroup), unix.EBADF)
}

func probePeekSiginfo() error {
	return withTracee(func(pid int) error {
		args := struct {
			off       uint64
			flags, nr uint32
		}{nr: 1}
		var info [128]byte
		if _, err := ptrace(unix.PTRACE_PEEKSIGINFO, pid, uintptr(unsafe.Pointer(&args)), uintptr(unsafe.Pointer(&info))); err != nil {
			return fmt.Errorf("pending signals: %w", err)
		}
		var mask uint64
		if _, err := ptrace(unix.PTRACE_GETSIGMASK, pid, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask))); err != nil {
			return fmt.Errorf("signal mask: %w", err)
		}
		return nil
	})
}

func probeRseqConf() error {
	return withTracee(func(pid int) error {
		var conf [24]byte // struct ptrace_rseq_configuration
		_, err := ptrace(unix.PTRACE_GET_RSEQ_CONFIGURATION, pid, unsafe.Sizeof(conf), uintptr(unsafe.Pointer(&conf)))
		return err
	})
}

// probePidfdGetfd duplicates a descriptor of our own.
func probePidfdGetfd() error {
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, pidfd, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_getfd", err)
	}
	return unix.Close(fd)
}

func probeTimerIDs() error {
	_, err := unix.PrctlRetInt(unix.PR_TIMER_CREATE_RESTORE_IDS, unix.PR_TIMER_CREATE_RESTORE_IDS_GET, 0, 0, 0)
	return os.NewSyscallError("prctl(PR_TIMER_CREATE_RESTORE_IDS)", err)
}

const tfdIocSetTicks = 0x40085400 // _IOW('T', 0, u64)

// probeTimerFD sets ticks from nowhere: a kernel that knows the request objects to the address.
func probeTimerFD() error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	defer unix.Close(fd)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), tfdIocSetTicks, 0)
	return refusedWith("ioctl(TFD_IOC_SET_TICKS)", errno, unix.EFAULT)
}

func probeNSPid() error { return contains("/proc/self/status", "NSpid:\t") }

func probeUserNS() error {
	if err := access("/proc/self/ns/user", unix.F_OK); err != nil {
		return err
	}
	return probePrctlMM()
}

// probeCloseRange closes a descriptor that no process can have. CLOSE_RANGE_UNSHARE came with the call; it is not
// tried, because it would part this thread from the others.
func probeCloseRange() error {
	return os.NewSyscallError("close_range", unix.CloseRange(^uint(0)>>32, ^uint(0)>>32, 0))
}
