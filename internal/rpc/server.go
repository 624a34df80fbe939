package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"

	"cryo/internal/features"
	"cryo/internal/options"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// Server serves one client. All fields but GitID are needed.
type Server struct {
	Client Client
	// Base are the options that requests add to.
	Base *options.Options
	// Version and GitID are told to who asks; GitID is empty for a release.
	Version, GitID string
	// Run does what options ask for, in the process.
	Run func(context.Context, *options.Options) error
	// StartPages starts a page server as a child and returns when it answers.
	StartPages func(context.Context, *options.Options) (pid, port int, err error)
	// Become turns this process into the command that a request wants as the parent of the restored tree.
	Become func(*options.Options) error
}

// kind says how a type of request is served.
type kind struct {
	serve func(*Server, context.Context, *Conn, *rpc.CriuReq) (*rpc.CriuResp, error)
	// keep says that the client may keep the connection open for more requests.
	keep bool
}

var kinds = map[rpc.CriuReqType]kind{
	rpc.CriuReqType_DUMP:             {serve: runs(options.Dump)},
	rpc.CriuReqType_RESTORE:          {serve: (*Server).restore},
	rpc.CriuReqType_CHECK:            {serve: runs(options.Check)},
	rpc.CriuReqType_PRE_DUMP:         {serve: runs(options.PreDump)},
	rpc.CriuReqType_SINGLE_PRE_DUMP:  {serve: runs(options.PreDump)},
	rpc.CriuReqType_PAGE_SERVER:      {serve: (*Server).pageServer, keep: true},
	rpc.CriuReqType_PAGE_SERVER_CHLD: {serve: (*Server).pageServer, keep: true},
	rpc.CriuReqType_CPUINFO_DUMP:     {serve: runs(options.CPUInfoDump), keep: true},
	rpc.CriuReqType_CPUINFO_CHECK:    {serve: runs(options.CPUInfoCheck), keep: true},
	rpc.CriuReqType_FEATURE_CHECK:    {serve: (*Server).features, keep: true},
	rpc.CriuReqType_VERSION:          {serve: (*Server).version, keep: true},
	rpc.CriuReqType_WAIT_PID:         {serve: (*Server).waitPID, keep: true},
}

// Serve answers requests until the client goes or has what it wants. An error is that of the last request, which the client
// knows already.
func (s *Server) Serve(ctx context.Context, conn *Conn) error {
	before := rpc.CriuReqType_EMPTY
	for {
		req, err := conn.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		var format *FormatError
		if err != nil && !errors.As(err, &format) {
			return err
		}
		resp, err := s.answer(ctx, conn, req, before, err)
		var told *answeredError
		if errors.As(err, &told) {
			return err
		}
		complete(resp, err)
		if sent := conn.send(resp, nil); sent != nil && (err != nil || req.GetType() != rpc.CriuReqType_DUMP) {
			return errors.Join(err, sent) // who asked to be dumped need not be there any more
		}
		before = req.GetType()
		if goesOn := req.GetKeepOpen() && kinds[before].keep || before == rpc.CriuReqType_PRE_DUMP && err == nil; !goesOn {
			return err
		}
	}
}

// answer serves one request. Pre-dumps are followed by pre-dumps, and a dump at the end.
func (s *Server) answer(ctx context.Context, conn *Conn, req *rpc.CriuReq, before rpc.CriuReqType, err error) (*rpc.CriuResp, error) {
	typ := req.GetType()
	k, known := kinds[typ]
	switch {
	case err != nil:
	case !known:
		err = fmt.Errorf("requests of type %v are not served", typ)
	case before == rpc.CriuReqType_PRE_DUMP && typ != before && typ != rpc.CriuReqType_DUMP:
		err = fmt.Errorf("a request of type %v cannot follow a pre-dump", typ)
	default:
		if req.GetKeepOpen() && !k.keep {
			return &rpc.CriuResp{Type: &typ}, &requestError{fmt.Errorf("keep_open is not for requests of type %v", typ)}
		}
		resp, err := k.serve(s, ctx, conn, req)
		if resp == nil {
			resp = &rpc.CriuResp{}
		}
		if resp.Type == nil {
			resp.Type = &typ
		}
		return resp, err
	}
	return &rpc.CriuResp{Type: rpc.CriuReqType_EMPTY.Enum()}, &unknownError{err}
}

// complete says how it went.
func complete(resp *rpc.CriuResp, err error) {
	resp.Success = new(err == nil)
	if err == nil {
		return
	}
	if n := errnoOf(err); n != 0 {
		resp.CrErrno = new(int32(n))
	}
	resp.CrErrmsg = new(message(err))
}

// maxMessage bounds the cause of a failure in bytes: clients receive into buffers of 1 KiB.
const maxMessage = 768

// message is the cause of a failure in one line.
func message(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if text = strings.ToValidUTF8(text, "?"); len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	return text
}

// requestError is a request that is not accepted, before anything was done.
type requestError struct{ err error }

func (e *requestError) Error() string { return e.err.Error() }
func (e *requestError) Unwrap() error { return e.err }

// unknownError is a packet that is no request, or one that does not belong here.
type unknownError struct{ err error }

func (e *unknownError) Error() string { return e.err.Error() }
func (e *unknownError) Unwrap() error { return e.err }

// answeredError is what went wrong after the client has got its answer.
type answeredError struct{ err error }

func (e *answeredError) Error() string { return e.err.Error() }
func (e *answeredError) Unwrap() error { return e.err }

func unknown(err error) bool {
	var u *unknownError
	return errors.As(err, &u)
}

// errnoOf is the error number of a failure, for those that criu has one for; 0 for others.
func errnoOf(err error) unix.Errno {
	var request *requestError
	if errors.As(err, &request) || unknown(err) {
		return unix.EBADRQC
	}
	for _, n := range []unix.Errno{unix.ESRCH, unix.EEXIST, unix.ENOTSUP, unix.ECHILD} {
		if errors.Is(err, n) {
			return n
		}
	}
	return 0
}

// runs serves requests that one verb does.
func runs(verb options.Verb) func(*Server, context.Context, *Conn, *rpc.CriuReq) (*rpc.CriuResp, error) {
	return func(s *Server, ctx context.Context, conn *Conn, req *rpc.CriuReq) (*rpc.CriuResp, error) {
		resp := &rpc.CriuResp{}
		if verb == options.Dump {
			resp.Dump = &rpc.CriuDumpResp{Restored: new(false)}
		}
		w, err := s.prepare(verb, conn, req.GetOpts())
		if err != nil {
			return resp, err
		}
		defer w.close()
		_, err = s.work(ctx, conn, w.o)
		return resp, err
	}
}

// work runs what options ask for, as long as the client is there. It returns the pid of the root, if there was one.
func (s *Server) work(ctx context.Context, conn *Conn, o *options.Options) (root int, err error) {
	ctx, f := follow(ctx, conn, o)
	defer f.unfollow()
	o.Client = f
	err = s.Run(ctx, o)
	if err != nil && errors.Is(context.Cause(ctx), errGone) && !errors.Is(err, errGone) {
		err = fmt.Errorf("%w: %w", errGone, err)
	}
	return f.root, err
}

func (s *Server) restore(ctx context.Context, conn *Conn, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	resp := &rpc.CriuResp{Restore: &rpc.CriuRestoreResp{Pid: new(int32(-1))}}
	w, err := s.prepare(options.Restore, conn, req.GetOpts())
	if err != nil {
		return resp, err
	}
	defer w.close()
	root, err := s.work(ctx, conn, w.o)
	if err != nil {
		return resp, err
	}
	resp.Restore.Pid = new(int32(root))
	if len(w.o.ExecCmd) == 0 {
		return resp, nil
	}
	complete(resp, nil)
	resp.Type = rpc.CriuReqType_RESTORE.Enum()
	if err := conn.send(resp, nil); err != nil {
		return resp, err
	}
	return resp, &answeredError{s.Become(w.o)}
}

// pageServer starts a page server. criu's answer has one type for both types of requests.
func (s *Server) pageServer(ctx context.Context, conn *Conn, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	resp := &rpc.CriuResp{Type: rpc.CriuReqType_PAGE_SERVER.Enum()}
	w, err := s.prepare(options.PageServer, conn, req.GetOpts())
	if err != nil {
		return resp, err
	}
	defer w.close()
	w.o.Client = &follower{conn: conn, o: w.o}
	pid, port, err := s.StartPages(ctx, w.o)
	if err != nil {
		return resp, err
	}
	resp.Ps = &rpc.CriuPageServerInfo{Pid: new(int32(pid)), Port: new(int32(port))}
	return resp, nil
}

// features says what this kernel can do of what the client asks about. All answers are always there.
func (s *Server) features(_ context.Context, _ *Conn, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	has := func(asked bool, name string) *bool {
		return new(asked && features.ByNames(name).Available())
	}
	f := req.GetFeatures()
	return &rpc.CriuResp{Features: &rpc.CriuFeatures{
		MemTrack:   has(f.GetMemTrack(), "mem_dirty_track"),
		LazyPages:  has(f.GetLazyPages(), "uffd-noncoop"),
		PidfdStore: has(f.GetPidfdStore(), "pidfd_store"),
	}}, nil
}

func (s *Server) version(context.Context, *Conn, *rpc.CriuReq) (*rpc.CriuResp, error) {
	var major, minor, sub int32
	n, _ := fmt.Sscanf(s.Version, "%d.%d.%d", &major, &minor, &sub)
	v := &rpc.CriuVersion{MajorNumber: &major, MinorNumber: &minor}
	if n > 2 {
		v.Sublevel = &sub
	}
	if s.GitID != "" {
		v.Gitid = &s.GitID
	}
	return &rpc.CriuResp{Version: v}, nil
}

// waitPID waits for a child of this process, which a page server is.
func (s *Server) waitPID(ctx context.Context, conn *Conn, req *rpc.CriuReq) (*rpc.CriuResp, error) {
	pid := req.GetPid()
	if pid == 0 || pid > math.MaxInt32 {
		return nil, &requestError{fmt.Errorf("request field pid: %d is no process", pid)}
	}
	type end struct {
		status unix.WaitStatus
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		var e end
		for {
			if _, e.err = unix.Wait4(int(pid), &e.status, 0, nil); e.err != unix.EINTR {
				break
			}
		}
		ended <- e
	}()
	ctx, f := follow(ctx, conn, s.Base)
	defer f.unfollow()
	select {
	case e := <-ended:
		if e.err != nil {
			return nil, fmt.Errorf("wait for process %d: %w", pid, e.err)
		}
		slog.Debug("a child has ended", "pid", pid, "status", e.status)
		return &rpc.CriuResp{Status: new(int32(e.status))}, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
