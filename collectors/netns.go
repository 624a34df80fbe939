package collectors

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// netNS opens the network namespace of a socket (Linux 4.9) and says which one it is. A task may have one without being in
// there; of a namespace that is not the tool's no socket can be dumped: its obstacle calls the socket what. The number is
// that of the images, 0 where no task is in the namespace.
//
// Without CAP_NET_ADMIN in there the kernel does not tell, and the namespace is taken for the tool's own.
func (p *Probe) netNS(env *Env, fd int, what string) (ns *os.File, number uint32, err error) {
	own, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		if own, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return nil, 0, fmt.Errorf("network namespace of the tool: %w", err)
		}
	}
	ns = os.NewFile(uintptr(own), "network namespace")
	var st unix.Stat_t
	if err = unix.Fstat(own, &st); err != nil {
		err = fmt.Errorf("network namespace: %w", err)
	} else if tools := env.Namespaces.own["net"]; tools != 0 && st.Ino != tools {
		err = p.Obstacle(fmt.Sprintf("%s of network namespace %d, which is not the tool's and cannot be dumped yet", what, st.Ino),
			"run the tool in that namespace (nsenter --net)")
	}
	if err != nil {
		ns.Close()
		return nil, 0, err
	}
	number, _ = env.Namespaces.ByInode("net", st.Ino)
	return ns, number, nil
}
