package collectors

import (
	"cryo/internal/procfs"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	"google.golang.org/protobuf/proto"
)

// Creds makes a thread's credentials from its status file. The securebits, which it does not tell, are the thread's
// own answer.
func Creds(s *procfs.Status) *creds.CredsEntry {
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
