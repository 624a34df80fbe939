package image

import (
	"fmt"
	"reflect"
	"strings"

	"cryo/internal/image/userfaultfd"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/apparmor"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/autofs"
	binfmt_misc "github.com/checkpoint-restore/go-criu/v8/crit/images/binfmt-misc"
	bpfmap_data "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-data"
	bpfmap_file "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/cgroup"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventpoll"
	ext_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ext-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fh"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fifo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	ipc_sem "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-sem"
	ipc_shm "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-shm"
	ipc_var "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-var"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/memfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/ns"
	packet_sock "github.com/checkpoint-restore/go-criu/v8/crit/images/packet-sock"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pidns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/signalfd"
	sk_inet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-inet"
	sk_netlink "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-netlink"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/stats"
	tcp_stream "github.com/checkpoint-restore/go-criu/v8/crit/images/tcp-stream"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tun"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/userns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/utsns"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"github.com/checkpoint-restore/go-criu/v8/magic"
	"google.golang.org/protobuf/proto"
)

// Type says all about one kind of image that is the same for every file of that kind.
type Type struct {
	Name    string // name of the magic, as crit prints it: "CORE"
	Pattern string // file name: "core-%d.img"; the verb stands for the id
	Magic   uint32 // the number behind Name

	// New makes an empty message for an entry; Head, where it is set, one for the first entry instead.
	New, Head func() proto.Message

	// Payload tells how many raw bytes follow entry m in the file, padding included; EndOfFile when
	// they go on to the end. nil: none do. Images with messages in the payload have Messages.
	Payload func(m proto.Message) int64

	// Messages tells how many messages with a payload each follow entry m (SysV message queues).
	Messages func(m proto.Message) uint32

	MaxEntry uint32 // longest message that is accepted, bytes
}

// EndOfFile is the payload length of an entry whose raw bytes end where the file ends.
const EndOfFile int64 = -1

const (
	defaultMaxEntry = 16 << 20
	largeMaxEntry   = 512 << 20 // messages that grow with mappings, threads or pages
)

// Kind is a Type that knows its message at compile time.
type Kind[M proto.Message] struct{ *Type }

var magics = magic.LoadMagic()

// table holds every row below in the order of the declarations.
var table []*Type

func kind[M proto.Message](name, base string, set ...func(*Type)) Kind[M] {
	mt := reflect.TypeFor[M]().Elem()
	t := &Type{
		Name: name, Pattern: base + ".img",
		Magic:    uint32(magics.ByName[name]),
		New:      func() proto.Message { return reflect.New(mt).Interface().(proto.Message) },
		MaxEntry: defaultMaxEntry,
	}
	for _, f := range set {
		f(t)
	}
	table = append(table, t)
	return Kind[M]{t}
}

func head[M proto.Message](t *Type) {
	mt := reflect.TypeFor[M]().Elem()
	t.Head = func() proto.Message { return reflect.New(mt).Interface().(proto.Message) }
}

func payload[M proto.Message](length func(M) int64) func(*Type) {
	return func(t *Type) { t.Payload = func(m proto.Message) int64 { return length(m.(M)) } }
}

func large(t *Type) { t.MaxEntry = largeMaxEntry }

func service(t *Type) { t.Pattern = strings.TrimSuffix(t.Pattern, ".img") }

func numbered(magic uint32) func(*Type) { return func(t *Type) { t.Magic = magic } }

// The kinds of images. What is left out here has no messages: pages-ID, and what other programs' formats fill,
// which RawPatterns lists.
var (
	Inventory     = kind[*inventory.InventoryEntry]("INVENTORY", "inventory")
	Pstree        = kind[*pstree.PstreeEntry]("PSTREE", "pstree", large)
	Core          = kind[*criu_core.CoreEntry]("CORE", "core-%d", large)
	IDs           = kind[*criu_core.TaskKobjIdsEntry]("IDS", "ids-%d")
	MM            = kind[*mm.MmEntry]("MM", "mm-%d", large)
	VMAs          = kind[*vma.VmaEntry]("VMAS", "vmas-%d")
	Pagemap       = kind[*pagemap.PagemapEntry]("PAGEMAP", "pagemap-%d", head[*pagemap.PagemapHead], large)
	PagemapShmem  = kind[*pagemap.PagemapEntry]("PAGEMAP", "pagemap-shmem-%d", head[*pagemap.PagemapHead], large)
	Fdinfo        = kind[*fdinfo.FdinfoEntry]("FDINFO", "fdinfo-%d")
	Files         = kind[*fdinfo.FileEntry]("FILES", "files", large)
	Fs            = kind[*fs.FsEntry]("FS", "fs-%d")
	Creds         = kind[*creds.CredsEntry]("CREDS", "creds-%d")
	Rlimit        = kind[*rlimit.RlimitEntry]("RLIMIT", "rlimit-%d")
	Sigacts       = kind[*criu_sa.SaEntry]("SIGACT", "sigacts-%d")
	Signal        = kind[*siginfo.SiginfoEntry]("SIGNAL", "signal-s-%d")
	SignalPrivate = kind[*siginfo.SiginfoEntry]("SIGNAL", "signal-p-%d")
	Itimers       = kind[*timer.ItimerEntry]("ITIMERS", "itimers-%d")
	PosixTimers   = kind[*timer.PosixTimerEntry]("POSIX_TIMERS", "posix-timers-%d")
	Seccomp       = kind[*seccomp.SeccompEntry]("SECCOMP", "seccomp", large)
	Apparmor      = kind[*apparmor.ApparmorEntry]("APPARMOR", "apparmor", large)
	Cgroup        = kind[*cgroup.CgroupEntry]("CGROUP", "cgroup", large)
	Cpuinfo       = kind[*cpuinfo.CpuinfoEntry]("CPUINFO", "cpuinfo")

	RegFiles      = kind[*regfile.RegFileEntry]("REG_FILES", "reg-files")
	ExtFiles      = kind[*ext_file.ExtFileEntry]("EXT_FILES", "ext-files")
	NsFiles       = kind[*ns.NsFileEntry]("NS_FILES", "ns-files")
	EventfdFile   = kind[*eventfd.EventfdFileEntry]("EVENTFD_FILE", "eventfd")
	EventpollFile = kind[*eventpoll.EventpollFileEntry]("EVENTPOLL_FILE", "eventpoll")
	EventpollTfd  = kind[*eventpoll.EventpollTfdEntry]("EVENTPOLL_TFD", "eventpoll-tfd")
	Signalfd      = kind[*signalfd.SignalfdEntry]("SIGNALFD", "signalfd")
	Timerfd       = kind[*timerfd.TimerfdEntry]("TIMERFD", "timerfd")
	InotifyFile   = kind[*fsnotify.InotifyFileEntry]("INOTIFY_FILE", "inotify")
	InotifyWd     = kind[*fsnotify.InotifyWdEntry]("INOTIFY_WD", "inotify-wd")
	FanotifyFile  = kind[*fsnotify.FanotifyFileEntry]("FANOTIFY_FILE", "fanotify")
	FanotifyMark  = kind[*fsnotify.FanotifyMarkEntry]("FANOTIFY_MARK", "fanotify-mark")
	Pidfd         = kind[*pidfd.PidfdEntry]("PIDFD", "pidfd", numbered(0x54435556))
	Userfaultfd   = kind[*userfaultfd.UserfaultfdEntry]("USERFAULTFD", "userfaultfd", large, numbered(0x44464655)) // ours alone
	RemapFpath    = kind[*remap_file_path.RemapFilePathEntry]("REMAP_FPATH", "remap-fpath")
	GhostFile     = kind[*ghost_file.GhostChunkEntry]("GHOST_FILE", "ghost-file-%x", head[*ghost_file.GhostFileEntry], ghostPayload)
	FileLocks     = kind[*file_lock.FileLockEntry]("FILE_LOCKS", "filelocks")
	MemfdInode    = kind[*memfd.MemfdInodeEntry]("MEMFD_INODE", "memfd")

	Pipes      = kind[*pipe.PipeEntry]("PIPES", "pipes")
	PipesData  = kind[*pipe_data.PipeDataEntry]("PIPES_DATA", "pipes-data", payload(pipePayload))
	Fifo       = kind[*fifo.FifoEntry]("FIFO", "fifo")
	FifoData   = kind[*pipe_data.PipeDataEntry]("FIFO_DATA", "fifo-data", payload(pipePayload))
	Unixsk     = kind[*sk_unix.UnixSkEntry]("UNIXSK", "unixsk")
	Inetsk     = kind[*sk_inet.InetSkEntry]("INETSK", "inetsk")
	Packetsk   = kind[*packet_sock.PacketSockEntry]("PACKETSK", "packetsk")
	Netlinksk  = kind[*sk_netlink.NetlinkSkEntry]("NETLINK_SK", "netlinksk")
	SkQueues   = kind[*sk_packet.SkPacketEntry]("SK_QUEUES", "sk-queues", payload(packetPayload))
	TCPStream  = kind[*tcp_stream.TcpStreamEntry]("TCP_STREAM", "tcp-stream-%x", payload(tcpPayload))
	TTYFiles   = kind[*tty.TtyFileEntry]("TTY_FILES", "tty")
	TTYInfo    = kind[*tty.TtyInfoEntry]("TTY_INFO", "tty-info")
	TTYData    = kind[*tty.TtyDataEntry]("TTY_DATA", "tty-data")
	Tunfile    = kind[*tun.TunfileEntry]("TUNFILE", "tunfile")
	BpfmapFile = kind[*bpfmap_file.BpfmapFileEntry]("BPFMAP_FILE", "bpfmap-file")
	BpfmapData = kind[*bpfmap_data.BpfmapDataEntry]("BPFMAP_DATA", "bpfmap-data", payload(bpfmapPayload))

	Utsns      = kind[*utsns.UtsnsEntry]("UTSNS", "utsns-%d")
	Timens     = kind[*timens.TimensEntry]("TIMENS", "timens-%d")
	Pidns      = kind[*pidns.PidnsEntry]("PIDNS", "pidns-%d")
	Userns     = kind[*userns.UsernsEntry]("USERNS", "userns-%d")
	IPCVar     = kind[*ipc_var.IpcVarEntry]("IPC_VAR", "ipcns-var-%d")
	IPCShm     = kind[*ipc_shm.IpcShmEntry]("IPCNS_SHM", "ipcns-shm-%d", payload(shmPayload))
	IPCMsg     = kind[*ipc_msg.IpcMsgEntry]("IPCNS_MSG", "ipcns-msg-%d", messageQueue)
	IPCSem     = kind[*ipc_sem.IpcSemEntry]("IPCNS_SEM", "ipcns-sem-%d", payload(semPayload))
	Mountpts   = kind[*mnt.MntEntry]("MNTS", "mountpoints-%d")
	Netdev     = kind[*netdev.NetDeviceEntry]("NETDEV", "netdev-%d")
	Netns      = kind[*netdev.NetnsEntry]("NETNS", "netns-%d")
	Autofs     = kind[*autofs.AutofsEntry]("AUTOFS", "autofs-%d")
	BinfmtMisc = kind[*binfmt_misc.BinfmtMiscEntry]("BINFMT_MISC", "binfmt-misc")
	BinfmtOld  = kind[*binfmt_misc.BinfmtMiscEntry]("BINFMT_MISC", "binfmt-misc-%d")

	StatsDump    = kind[*stats.StatsEntry]("STATS", "stats-dump", service)
	StatsRestore = kind[*stats.StatsEntry]("STATS", "stats-restore", service)
	IrmapCache   = kind[*fh.IrmapCacheEntry]("IRMAP_CACHE", "irmap-cache", service)
)

// TypeUserfaultfd is the type of a file of files.img whose description is in userfaultfd.img. criu knows no such type and
// refuses the set.
const TypeUserfaultfd fdinfo.FdTypes = 1001

// RawPatterns are the names of image files that hold no entries and no magic number: memory pages, archives of
// tmpfs contents, netlink and netfilter dumps.
var RawPatterns = []string{
	"pages-%d.img", "tmpfs-%d.tar.gz.img", "tmpfs-dev-%d.tar.gz.img",
	"ifaddr-%d.img", "route-%d.img", "route6-%d.img", "rule-%d.img",
	"iptables-%d.img", "ip6tables-%d.img", "nftables-%d.img", "netns-ct-%d.img", "netns-exp-%d.img",
}

// Types lists every kind of image with messages.
func Types() []*Type { return table }

// TypeByMagicName finds the first kind whose magic is called name ("CORE"); nil when there is none. Kinds
// that share a magic share the format too.
func TypeByMagicName(name string) *Type {
	for _, t := range table {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// TypeByMagic finds the first kind with this magic number; nil when there is none.
func TypeByMagic(magic uint32) *Type {
	for _, t := range table {
		if t.Magic == magic {
			return t
		}
	}
	return nil
}

// HasID says whether the file name of this kind carries an id.
func (t *Type) HasID() bool { return strings.Contains(t.Pattern, "%") }

// File is the name of the image with this id; the id counts only where the name has one.
func (t *Type) File(id uint64) string {
	if t.HasID() {
		return fmt.Sprintf(t.Pattern, id)
	}
	return t.Pattern
}

// leading tells which magic numbers stand before the entries.
func (t *Type) leading() []uint32 {
	switch t.Name {
	case "INVENTORY":
		return []uint32{t.Magic}
	case "STATS", "IRMAP_CACHE":
		return []uint32{uint32(magics.ByName["IMG_SERVICE"]), t.Magic}
	}
	return []uint32{uint32(magics.ByName["IMG_COMMON"]), t.Magic}
}

// entry makes an empty message for entry number n, counted from 0.
func (t *Type) entry(n int) proto.Message {
	if n == 0 && t.Head != nil {
		return t.Head()
	}
	return t.New()
}
