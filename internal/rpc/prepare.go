package rpc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// request is what a request asks for, with the descriptors of the client that it needs.
type request struct {
	o    *options.Options
	open []io.Closer
}

func (r *request) close() {
	for _, f := range r.open {
		f.Close()
	}
}

// defaultLog is the log of a request that names none.
const defaultLog = "criu.log"

// prepare turns the options of a request into what [Server.Run] takes. All errors are faults of the request.
func (s *Server) prepare(verb options.Verb, conn *Conn, req *rpc.CriuOpts) (*request, error) {
	o, err := FromRPC(verb, s.Base, req, s.Client)
	if err != nil {
		return nil, &requestError{err}
	}
	o.Unprivileged = o.Unprivileged || s.Base.Unprivileged
	r := &request{o: o}
	for _, step := range []func(*Conn, *rpc.CriuOpts) error{r.directories, r.log, r.descriptors, r.verb} {
		if err := step(conn, req); err != nil {
			r.close()
			return nil, &requestError{err}
		}
	}
	return r, nil
}

// directories opens those that the client names by descriptors. The images' is named through our own /proc then, and what
// is not given is where we are.
func (r *request) directories(conn *Conn, _ *rpc.CriuOpts) error {
	o := r.o
	if err := r.directory(conn, "images_dir_fd", &o.ImagesDirFD, &o.ImagesDir); err != nil {
		return err
	}
	if err := r.directory(conn, "work_dir_fd", &o.WorkDirFD, &o.WorkDir); err != nil {
		return err
	}
	switch {
	case o.ImagesDir == "-":
		return &Error{"images_dir", "a set cannot be piped through this connection: name a directory"}
	case o.ImagesDir != "":
		return nil
	case o.Verb != options.Check:
		return errors.New("neither images_dir_fd nor images_dir says where the images are")
	case o.LogFile != "" && o.WorkDir == "":
		return errors.New("log_file needs work_dir_fd, images_dir_fd or images_dir")
	}
	o.ImagesDir = "."
	return nil
}

// directory opens one of them, if it is given.
func (r *request) directory(conn *Conn, field string, fd *int, path *string) error {
	if *fd < 0 {
		return nil
	}
	f, err := conn.open(*fd, unix.O_DIRECTORY)
	if err != nil {
		return &Error{field, err.Error()}
	}
	r.open = append(r.open, f)
	*fd = int(f.Fd())
	*path = fmt.Sprintf("/proc/self/fd/%d", *fd)
	return nil
}

// log says where the log goes: a check without a file of its own has none.
func (r *request) log(_ *Conn, req *rpc.CriuOpts) error {
	o := r.o
	switch {
	case o.LogFile != "" || o.LogToStderr:
	case o.Verb != options.Check:
		o.LogFile = defaultLog
	}
	return nil
}

// descriptors opens what else the client names by descriptors.
func (r *request) descriptors(conn *Conn, _ *rpc.CriuOpts) error {
	o := r.o
	if o.StatusFD >= 0 {
		f, err := conn.open(o.StatusFD, os.O_WRONLY)
		if err != nil {
			return &Error{"status_fd", err.Error()}
		}
		defer f.Close()
		if o.StatusFD, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3); err != nil { // closed by who writes to it
			return &Error{"status_fd", err.Error()}
		}
	}
	if o.PidfdStoreFD >= 0 {
		// Between two pre-dumps the tracking of memory itself belongs to its tasks, so a task that has got the pid of another
		// is never taken for it; nothing has to be kept in the socket.
		path, err := conn.descriptor(o.PidfdStoreFD)
		if err != nil {
			return &Error{"pidfd_store_sk", err.Error()}
		}
		if is, err := os.Readlink(path); err != nil || !strings.HasPrefix(is, "socket:") {
			return &Error{"pidfd_store_sk", fmt.Sprintf("descriptor %d of the client is no socket", o.PidfdStoreFD)}
		}
	}
	return nil
}

// verb does what is different for some verbs.
func (r *request) verb(conn *Conn, req *rpc.CriuOpts) error {
	o := r.o
	switch o.Verb {
	case options.Dump, options.PreDump:
		o.ServiceSocket = conn.inode
		if o.Tree == 0 { // the client itself
			if conn.peer.Pid == 0 {
				return &Error{"pid", "the client is in a process namespace that is not visible here"}
			}
			o.Tree = int(conn.peer.Pid)
		}
		if o.NotifyScripts && o.Tree == int(conn.peer.Pid) {
			return &Error{"notify_scripts", "the client is to be dumped and would be asked while it stands still"}
		}
	case options.Restore:
		o.Detach = true
		o.OrphanPtsMaster = o.OrphanPtsMaster && o.NotifyScripts // else there is nobody who takes it
	case options.PageServer:
		o.PageServer = false
	}
	return nil
}
