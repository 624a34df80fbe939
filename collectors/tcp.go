package collectors

import (
	"fmt"
	"net/netip"

	"cryo/internal/poll"
	"cryo/internal/sockopt"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// tcpStates are the names of the states by their numbers (net/tcp_states.h).
var tcpStates = [...]string{
	unix.BPF_TCP_ESTABLISHED: "ESTABLISHED", unix.BPF_TCP_SYN_SENT: "SYN_SENT", unix.BPF_TCP_SYN_RECV: "SYN_RECV",
	unix.BPF_TCP_FIN_WAIT1: "FIN_WAIT1", unix.BPF_TCP_FIN_WAIT2: "FIN_WAIT2", unix.BPF_TCP_TIME_WAIT: "TIME_WAIT",
	unix.BPF_TCP_CLOSE: "CLOSE", unix.BPF_TCP_CLOSE_WAIT: "CLOSE_WAIT", unix.BPF_TCP_LAST_ACK: "LAST_ACK",
	unix.BPF_TCP_LISTEN: "LISTEN", unix.BPF_TCP_CLOSING: "CLOSING",
}

// tcpState fills the state of a TCP socket, its backlog and what is shut down.
func (s *inetSocket) tcpState(env *Env) error {
	state := s.info.State
	s.entry.State = proto.Uint32(uint32(state))
	switch state {
	case unix.BPF_TCP_LISTEN:
		// Of a listener these two fields are the connections that wait and how many may.
		s.entry.Backlog = proto.Uint32(s.info.Sacked)
		if s.info.Unacked != 0 && !env.Options.SkipInFlight {
			return s.Obstacle(fmt.Sprintf("a TCP socket listening at %v with %d connections that are not accepted yet", s.local(), s.info.Unacked), "--skip-in-flight")
		}
		return nil
	case unix.BPF_TCP_CLOSE:
		return s.closedShutdown()
	case unix.BPF_TCP_ESTABLISHED, unix.BPF_TCP_FIN_WAIT1, unix.BPF_TCP_FIN_WAIT2, unix.BPF_TCP_CLOSE_WAIT, unix.BPF_TCP_LAST_ACK,
		unix.BPF_TCP_CLOSING, unix.BPF_TCP_SYN_SENT:
	default:
		return s.Obstacle(fmt.Sprintf("a TCP socket in state %d, which cannot be dumped", state), "")
	}
	if !env.Options.TCPEstablished && !env.Options.TCPClose {
		return s.Obstacle(fmt.Sprintf("a TCP connection of %v with %v in state %s", s.local(), s.peer(), tcpStates[state]), "--tcp-established, or --tcp-close")
	}
	if err := s.urgent(); err != nil {
		return err
	}
	known, err := env.Sockets.find(env, s)
	s.setShutdown(known.Shutdown)
	return err
}

// urgent refuses a connection with urgent data that the program has not read: where in the queue they belong, and that they
// are urgent, repair mode does not tell.
func (s *inetSocket) urgent() error {
	fd, err := s.own.get()
	if err != nil {
		return err
	}
	ready, err := poll.Now(fd, unix.POLLPRI)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	if ready&unix.POLLPRI != 0 {
		return s.Obstacle(fmt.Sprintf("a TCP connection of %v with %v with urgent data that have not been read, which cannot be dumped", s.local(), s.peer()),
			"let the program read them first")
	}
	return nil
}

// closedShutdown finds out from poll(2) what of a socket without a connection is shut down: the kernel lists it nowhere.
// The end of reading shows; that of writing alone does not.
func (s *inetSocket) closedShutdown() error {
	fd, err := s.own.get()
	if err != nil {
		return err
	}
	ready, err := poll.Now(fd, unix.POLLRDHUP)
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	if ready&unix.POLLRDHUP != 0 {
		s.setShutdown(shutRead)
	}
	return nil
}

func (s *inetSocket) local() netip.AddrPort { return wordsAddr(s.entry.SrcAddr, s.entry.GetSrcPort()) }

func (s *inetSocket) peer() netip.AddrPort { return wordsAddr(s.entry.DstAddr, s.entry.GetDstPort()) }

// tcpOptions asks for the options of TCP. The image has them where they are not zero.
func (s *inetSocket) tcpOptions() {
	o := s.entry.TcpOpts
	get := func(name int) uint32 {
		v, err := sockopt.Int(s.fd, unix.SOL_TCP, name)
		if err != nil {
			return 0 // a socket of MPTCP knows only some of them, depending on the kernel
		}
		return uint32(v)
	}
	for _, flag := range [...]struct {
		name int
		to   **bool
	}{{unix.TCP_NODELAY, &o.Nodelay}, {unix.TCP_CORK, &o.Cork}} {
		if get(flag.name) != 0 {
			*flag.to = proto.Bool(true)
		}
	}
	for _, number := range [...]struct {
		name int
		to   **uint32
	}{{unix.TCP_KEEPCNT, &o.Keepcnt}, {unix.TCP_KEEPIDLE, &o.Keepidle}, {unix.TCP_KEEPINTVL, &o.Keepintvl}} {
		if v := get(number.name); v != 0 {
			*number.to = proto.Uint32(v)
		}
	}
}
