package image

import (
	bpfmap_data "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-data"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	ipc_sem "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-sem"
	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"google.golang.org/protobuf/proto"
)

// How many raw bytes follow an entry, for the kinds that have some.

func pipePayload(e *pipe_data.PipeDataEntry) int64   { return int64(e.GetBytes()) }
func packetPayload(e *sk_packet.SkPacketEntry) int64 { return int64(e.GetLength()) }

// tcpPayload: the receive queue, then the send queue.
func tcpPayload(e *tcp_stream.TcpStreamEntry) int64 {
	return int64(e.GetInqLen()) + int64(e.GetOutqLen())
}

// bpfmapPayload: all keys, then all values.
func bpfmapPayload(e *bpfmap_data.BpfmapDataEntry) int64 {
	return int64(e.GetKeysBytes()) + int64(e.GetValuesBytes())
}

// semPayload: the values, 16 bits each, padded to 8 bytes.
func semPayload(e *ipc_sem.IpcSemEntry) int64 { return roundUp(2*int64(e.GetNsems()), 8) }

// shmPayload: the content padded to 4 bytes, unless it is in pagemap-shmem-ID.img, where it is since criu 3.
// A size past the signed range is passed on as the longest there is and fails at the end of the file.
func shmPayload(e *ipc_shm.IpcShmEntry) int64 {
	if e.GetInPagemaps() {
		return 0
	}
	return roundUp(int64(min(e.GetSize(), 1<<62)), 4)
}

// ghostPayload: a head that says chunks is followed by chunk entries with their bytes each, one that does
// not by the whole content.
func ghostPayload(t *Type) {
	t.Payload = func(m proto.Message) int64 {
		switch e := m.(type) {
		case *ghost_file.GhostFileEntry:
			if !e.GetChunks() {
				return EndOfFile
			}
		case *ghost_file.GhostChunkEntry:
			return int64(min(e.GetLen(), 1<<62))
		}
		return 0
	}
}

// messageQueue: after the queue its messages, each an IpcMsg entry and its text padded to 8 bytes.
func messageQueue(t *Type) {
	t.Messages = func(m proto.Message) uint32 { return m.(*ipc_msg.IpcMsgEntry).GetQnum() }
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

func newIPCMsg() *ipc_msg.IpcMsg { return new(ipc_msg.IpcMsg) }
