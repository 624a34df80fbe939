package restorers

import (
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"golang.org/x/sys/unix"
)

// EmitFS sets root, working directory and umask. No file is opened by name after it: the root may have changed.
func EmitFS(b *remote.Builder, e *fs.FsEntry, p *Paths) error {
	cwd, err := p.EmitOpen(b, e.GetCwdId(), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	root, err := p.Get(e.GetRootId())
	if err != nil {
		return err
	}
	if root.path != "/" {
		fd := root.Emit(b, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
		b.Call(unix.SYS_FCHDIR, fd).Must().Discard()
		b.Call(unix.SYS_CHROOT, b.String(".")).Must().Discard()
		b.Call(unix.SYS_CLOSE, fd).Must().Discard()
	}
	b.Call(unix.SYS_FCHDIR, cwd).Must().Discard()
	b.Call(unix.SYS_CLOSE, cwd).Must().Discard()
	if e.Umask != nil {
		b.Call(unix.SYS_UMASK, remote.Imm(e.GetUmask()&0o777)).Discard()
	}
	return nil
}
