package collectors

import (
	"cryo/internal/procfs"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// readCreds makes the credentials of every thread; they may differ.
func readCreds(t *Task) error {
	for _, th := range t.Threads {
		th.Core.ThreadCore.Creds = credsOf(th.Status)
	}
	return nil
}

// askCreds asks a thread for its securebits, which its status does not tell.
func askCreds(b *remote.Builder) Answer[*Thread] {
	securebits := b.Call(unix.SYS_PRCTL, remote.Imm(unix.PR_GET_SECUREBITS)).Must()
	return func(r *remote.Results, th *Thread) error {
		bits, err := r.Value(securebits)
		th.Core.ThreadCore.Creds.Secbits = proto.Uint32(uint32(bits))
		return err
	}
}

// credsOf makes credentials from a thread's status.
func credsOf(s *procfs.Status) *creds.CredsEntry {
	e := &creds.CredsEntry{
		Uid: proto.Uint32(s.Uid[0]), Euid: proto.Uint32(s.Uid[1]), Suid: proto.Uint32(s.Uid[2]), Fsuid: proto.Uint32(s.Uid[3]),
		Gid: proto.Uint32(s.Gid[0]), Egid: proto.Uint32(s.Gid[1]), Sgid: proto.Uint32(s.Gid[2]), Fsgid: proto.Uint32(s.Gid[3]),
		CapInh: words(s.CapInh), CapPrm: words(s.CapPrm), CapEff: words(s.CapEff), CapBnd: words(s.CapBnd), CapAmb: words(s.CapAmb),
		Secbits: proto.Uint32(0),
		Groups:  s.Groups,
	}
	if s.NoNewPrivs {
		e.NoNewPrivs = proto.Uint32(1)
	}
	return e
}

// words splits a capability set the way images hold it, low word first.
func words(set uint64) []uint32 { return []uint32{uint32(set), uint32(set >> 32)} }
