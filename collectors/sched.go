package collectors

import (
	"encoding/binary"

	"cryo/internal/remote"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// sizeofSchedAttr is that of struct sched_attr in its first version.
const sizeofSchedAttr = 48

// askSched asks a thread for its scheduling policy, priority and nice value (sched_getattr, Linux 3.14).
func askSched(b *remote.Builder) Answer[*Thread] {
	attr := b.Zero(sizeofSchedAttr)
	b.Call(unix.SYS_SCHED_GETATTR, remote.Imm(0), attr, remote.Imm(sizeofSchedAttr), remote.Imm(0)).Must()
	return func(r *remote.Results, th *Thread) error { return readSched(r.Bytes(attr), th) }
}

// readSched takes a struct sched_attr apart.
func readSched(attr []byte, th *Thread) error {
	const schedDeadline, flagResetOnFork, policyResetOnFork = 6, 1, 0x40000000
	tc := th.Core.ThreadCore
	policy := binary.NativeEndian.Uint32(attr[4:])
	flags := binary.NativeEndian.Uint64(attr[8:])
	tc.SchedNice = proto.Int32(int32(binary.NativeEndian.Uint32(attr[16:])))
	switch policy {
	case unix.SCHED_FIFO, unix.SCHED_RR:
		tc.SchedPrio = proto.Uint32(binary.NativeEndian.Uint32(attr[20:]))
	case schedDeadline:
		return Obstacle{Pid: th.Tid, What: "runs under SCHED_DEADLINE, which the image format cannot hold", Remedy: "give it another policy with chrt"}
	}
	if flags&flagResetOnFork != 0 {
		policy |= policyResetOnFork
	}
	tc.SchedPolicy = proto.Uint32(policy)
	return nil
}
