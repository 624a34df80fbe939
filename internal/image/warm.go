package image

import (
	"cryo/internal/wire"

	core_x86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rlimit"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/rseq"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timens"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timer"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/proto"
)

// Warm prepares the messages that every dump writes: better before the tasks are stopped than after.
func Warm() {
	timers := &timer.TaskTimersEntry{Real: &timer.ItimerEntry{}}
	core := &criu_core.CoreEntry{
		ThreadInfo: &core_x86.ThreadInfoX86{
			Gpregs: &core_x86.UserX86RegsEntry{},
			Fpregs: &core_x86.UserX86FpregsEntry{Xsave: &core_x86.UserX86XsaveEntry{Cet: &core_x86.UserX86CetEntry{}}},
			Tls:    []*core_x86.UserDescT{{}},
		},
		Tc: &criu_core.TaskCoreEntry{
			Timers: timers, Rlimits: &criu_core.TaskRlimitsEntry{Rlimits: []*rlimit.RlimitEntry{{}}},
			SignalsS: &siginfo.SignalQueueEntry{}, Sigactions: []*criu_sa.SaEntry{{}},
		},
		ThreadCore: &criu_core.ThreadCoreEntry{
			Sas: &criu_core.ThreadSasEntry{}, SignalsP: &siginfo.SignalQueueEntry{}, Creds: &creds.CredsEntry{}, RseqEntry: &rseq.RseqEntry{},
		},
	}
	for _, m := range []proto.Message{
		core, &criu_core.TaskKobjIdsEntry{}, &mm.MmEntry{Vmas: []*vma.VmaEntry{{}}}, &fs.FsEntry{}, &fdinfo.FdinfoEntry{},
		&fdinfo.FileEntry{Reg: &regfile.RegFileEntry{Fown: &fown.FownEntry{}}, Pipe: &pipe.PipeEntry{}},
		&pstree.PstreeEntry{}, &timens.TimensEntry{Monotonic: &timens.Timespec{}}, &pagemap.PagemapHead{}, &pagemap.PagemapEntry{},
		&inventory.InventoryEntry{PluginsEntry: &inventory.PluginsEntry{}},
	} {
		wire.Prepare(m)
	}
}
