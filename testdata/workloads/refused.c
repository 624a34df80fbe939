/* Holds one thing that cannot be dumped, named by the argument, and verifies that it has it yet. */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/userfaultfd.h>
#include <mqueue.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static char buf[4096];

static void connected(int proto, int ends[2])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM, proto);

	CHECK(l >= 0 && bind(l, (struct sockaddr *)&a, n) == 0 && listen(l, 1) == 0, "listen");
	CHECK(getsockname(l, (struct sockaddr *)&a, &n) == 0, "getsockname");
	ends[0] = socket(AF_INET, SOCK_STREAM, proto);
	CHECK(connect(ends[0], (struct sockaddr *)&a, n) == 0, "connect");
	ends[1] = accept(l, NULL, NULL);
	CHECK(ends[1] >= 0, "accept");
	close(l);
}

static void urgent(void)
{
	int ends[2];

	connected(0, ends);
	CHECK(send(ends[0], "!", 1, MSG_OOB) == 1, "send");
	struct pollfd p = { ends[1], POLLPRI, 0 };
	CHECK(poll(&p, 1, 10000) == 1, "poll");
	workload_ready();
	CHECK(recv(ends[1], buf, 1, MSG_OOB) == 1 && buf[0] == '!', "urgent byte");
}

static void mptcp(void)
{
	int ends[2];

	connected(262 /* IPPROTO_MPTCP */, ends);
	workload_ready();
	CHECK(send(ends[0], "x", 1, 0) == 1 && recv(ends[1], buf, 1, 0) == 1, "talk");
}

static void corked(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof(a);
	int fd = socket(AF_INET, SOCK_DGRAM, 0), on = 1, off = 0;

	CHECK(bind(fd, (struct sockaddr *)&a, n) == 0 && getsockname(fd, (struct sockaddr *)&a, &n) == 0, "bind");
	CHECK(connect(fd, (struct sockaddr *)&a, n) == 0, "connect");
	CHECK(setsockopt(fd, IPPROTO_UDP, UDP_CORK, &on, sizeof(on)) == 0 && write(fd, "data", 4) == 4, "cork");
	workload_ready();
	CHECK(setsockopt(fd, IPPROTO_UDP, UDP_CORK, &off, sizeof(off)) == 0 && read(fd, buf, 5) == 4, "uncork");
}

static void queued(void)
{
	struct sockaddr_nl a = { .nl_family = AF_NETLINK };
	socklen_t n = sizeof(a);
	int in = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK), out = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK);

	CHECK(bind(in, (struct sockaddr *)&a, n) == 0 && getsockname(in, (struct sockaddr *)&a, &n) == 0, "bind");
	CHECK(sendto(out, "wait", 4, 0, (struct sockaddr *)&a, n) == 4, "send");
	workload_ready();
	CHECK(recv(in, buf, sizeof(buf), 0) == 4, "recv");
}

static void ring(void)
{
	struct tpacket_req r = { 8192, 1, 2048, 4 };
	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	CHECK(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &r, sizeof(r)) == 0, "ring");
	char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED && munmap(p + 4096, 4096) == 0, "mmap");
	workload_ready();
	CHECK(p[0] == 0, "ring");
}

/* A network namespace with a device that is more than one. */
static void veth(void)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg i;
		struct rtattr info, kind;
		char name[8];
	} req = { { sizeof(req), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0 }, {},
		  { sizeof(struct rtattr) * 2 + 8, IFLA_LINKINFO }, { sizeof(struct rtattr) + 5, IFLA_INFO_KIND }, "veth" };

	CHECK(unshare(CLONE_NEWNET) == 0, "unshare");
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	CHECK(send(fd, &req, sizeof(req), 0) == sizeof(req) && recv(fd, buf, sizeof(buf), 0) > 0, "ask for a pair");
	CHECK(if_nametoindex("veth0"), "no pair");
	workload_ready();
	CHECK(if_nametoindex("veth0"), "no pair any more");
}

/* A child in a network namespace of its own. */
static void nested(void)
{
	int pipes[2];

	CHECK(pipe(pipes) == 0, "pipe");
	pid_t child = fork();
	if (!child) {
		char c = unshare(CLONE_NEWNET) ? 'n' : 'y';
		_exit(write(pipes[1], &c, 1) != 1 || pause());
	}
	CHECK(read(pipes[0], buf, 1) == 1 && buf[0] == 'y', "unshare");
	workload_ready();
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child, "child");
}

static mqd_t queue(char name[64])
{
	snprintf(name, 64, "/cryo-refused-%d", getpid());
	mqd_t q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
	CHECK(q >= 0, "mq_open");
	return q;
}

static void unlinked(void)
{
	char name[64];
	mqd_t q = queue(name);
	struct mq_attr attr;

	CHECK(mq_unlink(name) == 0, "mq_unlink");
	workload_ready();
	CHECK(mq_getattr(q, &attr) == 0, "mq_getattr");
}

static void notified(void)
{
	char name[64];
	mqd_t q = queue(name);
	struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	CHECK(mq_notify(q, &e) == 0, "mq_notify");
	workload_ready();
	int sent = mq_send(q, "x", 1, 0);
	mq_unlink(name);
	CHECK(sent == 0 && sigwaitinfo(&set, NULL) == SIGUSR1, "signal");
}

static void handshake(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(SYS_userfaultfd, O_NONBLOCK);

	CHECK(fd >= 0, "userfaultfd");
	workload_ready();
	CHECK(ioctl(fd, UFFDIO_API, &api) == 0, "UFFDIO_API");
}

/* Memory that a process provides which has left the tree; it ends with this one. */
static void ondemand(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register reg = { .range = { (uint64_t)p, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC), alive[2];

	CHECK(fd >= 0 && !ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &reg), "userfaultfd");
	CHECK(pipe(alive) == 0, "pipe");
	pid_t child = fork();
	if (!child) {
		if (fork())
			_exit(0);
		close(alive[1]);
		close(workload_dir);
		_exit(read(alive[0], buf, 1) != 0);
	}
	CHECK(waitpid(child, NULL, 0) == child, "child");
	close(fd);
	close(alive[0]);
	workload_ready();
}

static void secret(void)
{
	int fd = syscall(447 /* memfd_secret */, 0);

	CHECK(fd >= 0 && ftruncate(fd, 4096) == 0, "memfd_secret");
	char *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED, "mmap");
	strcpy(p, "secret");
	close(fd);
	workload_ready();
	CHECK(!strcmp(p, "secret"), "content");
}

static struct {
	const char *name;
	void (*hold)(void);
} kinds[] = {
	{ "urgent", urgent }, { "mptcp", mptcp }, { "corked", corked },	    { "queued", queued },
	{ "ring", ring },     { "unlinked", unlinked }, { "notified", notified },
	{ "veth", veth },     { "nested", nested },	{ "handshake", handshake }, { "ondemand", ondemand }, { "secret", secret },
};

int main(int argc, char **argv)
{
	workload_init();
	for (unsigned i = 0; argc == 2 && i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!strcmp(kinds[i].name, argv[1])) {
			kinds[i].hold();
			workload_pass();
		}
	workload_fail("which one?");
}
