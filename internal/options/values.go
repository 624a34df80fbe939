package options

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Value is the type of an option that is more than a bool, a number, a string or a list of strings.
// Set gets the argument, and whether there was one: it may be missing where the option's argument is optional.
type Value interface {
	Set(arg string, given bool) error
}

// FinalState is what becomes of the tasks at the end.
type FinalState int

// The states a dumped or restored tree can be left in.
const (
	Kill         FinalState = iota // dumped tasks are killed, restored tasks run
	LeaveStopped                   // tasks stay stopped
	LeaveRunning                   // dumped tasks go on
)

// finalFlag sets one of the states of a FinalState; it is how two options write to one field.
type finalFlag struct {
	to    *FinalState
	state FinalState
}

func (f finalFlag) Set(string, bool) error { *f.to = f.state; return nil }

// both sets two fields.
type both [2]*bool

func (b both) Set(string, bool) error { *b[0], *b[1] = true, true; return nil }

// Verbosity is the log level: see [Options.Verbosity].
type Verbosity int

// Set counts up without an argument, by the number of v's for an argument of v's (-vvv), and takes any other
// argument as criu does with atoi: its leading digits.
func (v *Verbosity) Set(arg string, given bool) error {
	switch {
	case !given:
		*v++
	case strings.HasPrefix(arg, "v"):
		*v += Verbosity(len(arg) + 1)
	default:
		*v = Verbosity(leadingInt(arg))
	}
	return nil
}

func leadingInt(s string) int {
	end := 0
	for end < len(s) && end < 4 && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	n, _ := strconv.Atoi(s[:end])
	return n
}

// Size is a number of bytes, written with an optional K, M or G.
type Size uint64

// Set parses a size.
func (s *Size) Set(arg string, _ bool) error {
	digits, shift := arg, 0
	if n := len(arg); n > 0 {
		if i := strings.IndexByte("KMG", arg[n-1]); i >= 0 {
			digits, shift = arg[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64-shift)
	if err != nil {
		return fmt.Errorf("%q is no size: give a number with an optional K, M or G", arg)
	}
	*s = Size(n << shift)
	return nil
}

// Format names one of several output forms; empty is off.
type Format string

// formatFlag is a Format with its known names, the first being the one of a missing argument.
type formatFlag struct {
	to    *Format
	names []string
}

func (f formatFlag) Set(arg string, given bool) error {
	if !given {
		arg = f.names[0]
	}
	for _, n := range f.names {
		if n == arg {
			*f.to = Format(arg)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of %s", arg, strings.Join(f.names, ", "))
}

// PreDumpMode is how a pre-dump gets at memory.
type PreDumpMode int

// The modes of a pre-dump.
const (
	PreDumpSplice PreDumpMode = iota // the task's own pages through pipes
	PreDumpRead                      // process_vm_readv
)

// Set parses splice or read.
func (m *PreDumpMode) Set(arg string, _ bool) error {
	return choose(m, arg, []choice[PreDumpMode]{{"splice", PreDumpSplice}, {"read", PreDumpRead}})
}

// FileValidation is how a file is recognised on restore.
type FileValidation int

// The ways to recognise a file.
const (
	ValidateFileSize FileValidation = iota
	ValidateBuildID                 // and size
)

// Set parses filesize or buildid.
func (v *FileValidation) Set(arg string, _ bool) error {
	return choose(v, arg, []choice[FileValidation]{{"filesize", ValidateFileSize}, {"buildid", ValidateBuildID}})
}

// NetworkLock is how packets are held back during dump and restore of connections.
type NetworkLock int

// The ways to hold packets back.
const (
	LockIptables NetworkLock = iota
	LockNftables
	LockSkip
)

// Set parses iptables, nftables, skip or none.
func (l *NetworkLock) Set(arg string, _ bool) error {
	return choose(l, arg, []choice[NetworkLock]{
		{"iptables", LockIptables}, {"nftables", LockNftables}, {"skip", LockSkip}, {"none", LockSkip},
	})
}

// CgroupMode is how much of the control groups of the tree is kept.
type CgroupMode int

// The control group modes, in criu's order.
const (
	CgroupIgnore CgroupMode = iota // do not deal with control groups
	CgroupNone                     // tasks go to existing groups, nothing is made
	CgroupProps                    // as none, and properties are set
	CgroupSoft                     // groups that are missing are made with their properties
	CgroupFull                     // properties are set even of groups that exist
	CgroupStrict                   // no group may exist before
)

// Set parses a mode; without an argument it is soft.
func (m *CgroupMode) Set(arg string, given bool) error {
	if !given {
		*m = CgroupSoft
		return nil
	}
	return choose(m, arg, []choice[CgroupMode]{
		{"ignore", CgroupIgnore}, {"none", CgroupNone}, {"props", CgroupProps},
		{"soft", CgroupSoft}, {"full", CgroupFull}, {"strict", CgroupStrict},
	})
}

// CPUCap is a set of processor properties that images record and a restore compares.
type CPUCap uint32

// The processor properties; their values are those of the RPC message.
const (
	CPUCapNone  CPUCap = 0
	CPUCapFPU   CPUCap = 1 << 0 // extended state only
	CPUCapCPU   CPUCap = 1 << 1 // everything that cpuid tells
	CPUCapIns   CPUCap = 1 << 2 // instructions that programs may use
	CPUCapImage CPUCap = 1 << 3 // cpuinfo.img is written by dump and read by restore

	CPUCapAll     = CPUCapFPU | CPUCapCPU | CPUCapIns
	CPUCapDefault = CPUCapFPU | CPUCapIns
)

// Set parses a comma-separated list of cpu, fpu, ins, all and none, each turned round by a leading ^.
func (c *CPUCap) Set(arg string, given bool) error {
	if !given {
		*c |= CPUCapAll | CPUCapImage
		return nil
	}
	next := *c
	for _, item := range strings.Split(arg, ",") {
		name, inverse := strings.CutPrefix(item, "^")
		var bits CPUCap
		switch name {
		case "":
			continue
		case "none":
			next = CPUCapNone
			if inverse {
				next = CPUCapAll
			}
			continue
		case "fpu":
			bits = CPUCapFPU
		case "cpu":
			bits = CPUCapCPU
		case "ins":
			bits = CPUCapIns
		case "all":
			bits = CPUCapAll
		default:
			return fmt.Errorf("%q is not one of cpu, fpu, ins, all, none", name)
		}
		if inverse {
			next &^= bits
		} else {
			next |= bits
		}
	}
	if next != CPUCapNone {
		next |= CPUCapImage
	}
	*c = next
	return nil
}

// ExtUnix allows UNIX sockets with an end outside: all of them, and by inode.
type ExtUnix struct {
	Allow  bool
	Inodes []uint64
}

// Set allows external UNIX sockets, and adds a comma-separated list of inodes to those to leave alone.
func (x *ExtUnix) Set(arg string, given bool) error {
	if given {
		for _, s := range strings.Split(arg, ",") {
			ino, err := strconv.ParseUint(s, 10, 64)
			if err != nil || ino == 0 {
				return fmt.Errorf("%q is no inode number of a socket", s)
			}
			x.Inodes = append(x.Inodes, ino)
		}
	}
	x.Allow = true
	return nil
}

// InheritFD says that descriptor FD of the tool is the object Key of the images.
type InheritFD struct {
	FD  int
	Key string
}

type inheritList struct{ to *[]InheritFD }

func (l inheritList) Set(arg string, _ bool) error {
	num, key, ok := strings.Cut(strings.TrimPrefix(arg, "fd["), "]:")
	fd, err := strconv.ParseInt(num, 10, 32)
	if !ok || !strings.HasPrefix(arg, "fd[") || err != nil || fd < 0 || key == "" {
		return fmt.Errorf("%q is not of the form fd[NUM]:RES", arg)
	}
	*l.to = append(*l.to, InheritFD{int(fd), key})
	return nil
}

// KeyValue is an argument of two parts.
type KeyValue struct{ Key, Value string }

// pairList appends "key SEP value" arguments; lone says what an argument without the separator is.
type pairList struct {
	to   *[]KeyValue
	sep  string
	lone func(string) error
}

func (l pairList) Set(arg string, _ bool) error {
	key, value, ok := strings.Cut(arg, l.sep)
	if !ok {
		if l.lone != nil {
			return l.lone(arg)
		}
		return fmt.Errorf("%q has no %q", arg, l.sep)
	}
	*l.to = append(*l.to, KeyValue{key, value})
	return nil
}

// setAuto is what --ext-mount-map takes without a key: auto, which is a switch.
func setAuto(to *bool, arg string) error {
	if arg != "auto" {
		return fmt.Errorf("%q is neither KEY:VALUE nor auto", arg)
	}
	*to = true
	return nil
}

// addRoot is what --cgroup-root takes without a controller: the root of all that have none of their own.
func addRoot(to *[]KeyValue, arg string) error {
	*to = append(*to, KeyValue{Value: arg})
	return nil
}

// extMounts is both places that --ext-mount-map writes to.
type extMounts struct {
	list []KeyValue
	auto bool
}

// commaList appends the items of a comma-separated argument.
type commaList struct{ to *[]string }

func (l commaList) Set(arg string, _ bool) error {
	*l.to = append(*l.to, strings.Split(arg, ",")...)
	return nil
}

// fdList appends a descriptor number.
type fdList struct{ to *[]int }

func (l fdList) Set(arg string, _ bool) error {
	fd, err := strconv.ParseInt(arg, 10, 32)
	if err != nil || fd < 0 {
		return fmt.Errorf("%q is no descriptor number", arg)
	}
	*l.to = append(*l.to, int(fd))
	return nil
}

// fdsList is a list of different descriptor numbers.
type fdsList struct{ to *[]int }

func (l fdsList) Set(arg string, _ bool) error {
	var fds []int
	for word := range strings.SplitSeq(arg, ",") {
		if err := (fdList{&fds}).Set(word, false); err != nil {
			return err
		}
		if slices.Contains(fds[:len(fds)-1], fds[len(fds)-1]) {
			return fmt.Errorf("descriptor %s is there twice", word)
		}
	}
	*l.to = fds
	return nil
}

// bounded is a number with limits.
type bounded struct {
	to       *int
	min, max int
	what     string
}

func (b bounded) Set(arg string, _ bool) error {
	n, err := strconv.Atoi(arg)
	if err != nil || n < b.min || n > b.max {
		return fmt.Errorf("%q is no %s", arg, b.what)
	}
	*b.to = n
	return nil
}

// JoinNS is a namespace to restore into.
type JoinNS struct {
	NS    string // net, mnt, ipc, uts, user, time, pid
	File  string // its file, or the pid of a task that is in it
	Extra string // for user: "uid,gid"
}

type joinList struct{ to *[]JoinNS }

func (l joinList) Set(arg string, _ bool) error {
	ns, rest, ok := strings.Cut(arg, ":")
	file, extra, _ := strings.Cut(rest, ",")
	if !ok || ns == "" || file == "" {
		return fmt.Errorf("%q is not of the form NS:PID or NS:FILE", arg)
	}
	*l.to = append(*l.to, JoinNS{ns, file, extra})
	return nil
}

// EmptyNS is a set of CLONE_NEW* flags.
type EmptyNS uint32

// Set adds a namespace by name; net is the only one.
func (e *EmptyNS) Set(arg string, _ bool) error {
	if arg != "net" {
		return fmt.Errorf("%q cannot be left empty: only net can", arg)
	}
	*e |= unix.CLONE_NEWNET
	return nil
}

type choice[T any] struct {
	name  string
	value T
}

func choose[T any](to *T, arg string, choices []choice[T]) error {
	names := make([]string, len(choices))
	for i, c := range choices {
		if c.name == arg {
			*to = c.value
			return nil
		}
		names[i] = c.name
	}
	return fmt.Errorf("%q is not one of %s", arg, strings.Join(names, ", "))
}
