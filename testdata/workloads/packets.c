/* Packet sockets: bound and not, with rings that are mapped, memberships, a fanout group, options. Called with "fine" it has
 * what criu's format has no place for. */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <sys/socket.h>

#define LOOPBACK 1
#define FRAME 2048
#define FRAMES 4

static int protocol; /* three of its own, so that it hears nobody else */

static void set(int fd, int name, int v)
{
	CHECK(setsockopt(fd, SOL_PACKET, name, &v, sizeof(v)) == 0, "set option %d", name);
}

static int get(int fd, int name)
{
	int v = -1;
	socklen_t n = sizeof(v);

	CHECK(getsockopt(fd, SOL_PACKET, name, &v, &n) == 0, "get option %d", name);
	return v;
}

static int make(int type, int number, int device)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(number), .sll_ifindex = device };
	int fd = socket(AF_PACKET, type, htons(number));

	CHECK(fd >= 0, "packet socket");
	if (device)
		CHECK(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0, "bind");
	return fd;
}

static void same(int fd, int number, int device)
{
	struct sockaddr_ll a;
	socklen_t n = sizeof(a);

	CHECK(getsockname(fd, (struct sockaddr *)&a, &n) == 0, "getsockname");
	CHECK(a.sll_protocol == htons(number) && a.sll_ifindex == device, "bound to %#x, device %d", ntohs(a.sll_protocol), a.sll_ifindex);
}

static void membership(int fd, int name, int type, int must)
{
	struct packet_mreq m = { .mr_ifindex = LOOPBACK, .mr_type = type };

	if (type == PACKET_MR_MULTICAST) {
		m.mr_alen = ETH_ALEN;
		memcpy(m.mr_address, "\x01\x00\x5e\x00\x00\x42", ETH_ALEN);
	}
	int err = setsockopt(fd, SOL_PACKET, name, &m, sizeof(m));
	CHECK((err == 0) == must, "membership %d", type);
}

static struct tpacket_req shape = { FRAME * FRAMES, 1, FRAME, FRAMES };

static char *ring(int fd, int flags)
{
	set(fd, PACKET_VERSION, TPACKET_V2);
	CHECK(setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &shape, sizeof(shape)) == 0, "ring");
	char *p = mmap(NULL, FRAME * FRAMES, PROT_READ | PROT_WRITE, flags, fd, 0);
	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

static void talk(int fd, char *frames)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(protocol), .sll_ifindex = LOOPBACK, .sll_halen = ETH_ALEN };
	struct tpacket2_hdr *h = (struct tpacket2_hdr *)frames;
	struct pollfd p = { fd, POLLIN, 0 };

	CHECK(h->tp_status == TP_STATUS_KERNEL, "status %x", h->tp_status);
	CHECK(sendto(fd, "experiment", 10, 0, (struct sockaddr *)&to, sizeof(to)) == 10, "send");
	CHECK(poll(&p, 1, 5000) == 1 && h->tp_status & TP_STATUS_USER, "status %x", h->tp_status);
	CHECK(!memcmp(frames + h->tp_net, "experiment", 10), "another packet");
}

int main(int argc, char **argv)
{
	int fine = argc > 1 && !strcmp(argv[1], "fine");
	pid_t child = 0;
	int status, pipes[2];

	workload_init();
	protocol = 0x9000 + 3 * (getpid() % 0x2000); /* of the numbers hardly anybody has taken */

	int bound = make(SOCK_DGRAM, protocol, LOOPBACK), loose = make(SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0);
	char *frames = ring(bound, MAP_SHARED);
	set(loose, PACKET_AUXDATA, 1);
	set(loose, PACKET_ORIGDEV, 1);
	set(loose, PACKET_RESERVE, 8);
	set(loose, PACKET_LOSS, 1);
	membership(loose, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, 1);
	membership(loose, PACKET_ADD_MEMBERSHIP, PACKET_MR_MULTICAST, 1);
	if (fine)
		membership(loose, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, 1);

	/* Two that share what comes. */
	int shared[2], group = (getpid() & 0xffff) | PACKET_FANOUT_LB << 16;
	for (int i = 0; i < 2; i++) {
		shared[i] = make(SOCK_DGRAM, protocol + 1, LOOPBACK);
		set(shared[i], PACKET_FANOUT, group | (fine ? PACKET_FANOUT_FLAG_ROLLOVER << 16 : 0));
	}
	group = get(shared[0], PACKET_FANOUT);

	int modern = -1;
	if (fine) {
		modern = make(SOCK_RAW, protocol + 2, LOOPBACK);
		set(modern, PACKET_QDISC_BYPASS, 1);
		set(modern, PACKET_IGNORE_OUTGOING, 1);
		/* A child has the ring by inheritance alone. */
		CHECK(pipe(pipes) == 0, "pipe");
		child = fork();
		CHECK(child >= 0, "fork");
		if (!child) {
			char c;
			close(bound);
			close(pipes[1]);
			if (read(pipes[0], &c, 1) != 1)
				_exit(9);
			_exit(((struct tpacket2_hdr *)frames)->tp_status & TP_STATUS_USER && !memcmp(frames + c, "experiment", 10) ? 0 : 1);
		}
	}

	workload_ready();

	same(bound, protocol, LOOPBACK);
	same(loose, 0, 0);
	CHECK(fcntl(loose, F_GETFL) & O_NONBLOCK && fcntl(loose, F_GETFD) == FD_CLOEXEC, "flags");
	CHECK(get(bound, PACKET_VERSION) == TPACKET_V2, "version");
	CHECK(get(loose, PACKET_AUXDATA) == 1 && get(loose, PACKET_ORIGDEV) == 1 && get(loose, PACKET_RESERVE) == 8 &&
	      get(loose, PACKET_LOSS) == 1 && get(bound, PACKET_AUXDATA) == 0, "options");
	for (int i = 0; i < 2; i++) {
		same(shared[i], protocol + 1, LOOPBACK);
		CHECK(get(shared[i], PACKET_FANOUT) == group, "group %x, was %x", get(shared[i], PACKET_FANOUT), group);
	}
	membership(loose, PACKET_DROP_MEMBERSHIP, PACKET_MR_PROMISC, 1);
	membership(loose, PACKET_DROP_MEMBERSHIP, PACKET_MR_MULTICAST, 1);
	if (fine) {
		membership(loose, PACKET_DROP_MEMBERSHIP, PACKET_MR_PROMISC, 1);
		CHECK(get(modern, PACKET_QDISC_BYPASS) == 1 && get(modern, PACKET_IGNORE_OUTGOING) == 1, "young options");
	}
	talk(bound, frames);
	if (child) {
		char at = ((struct tpacket2_hdr *)frames)->tp_net;
		CHECK(write(pipes[1], &at, 1) == 1 && waitpid(child, &status, 0) == child, "child");
		CHECK(status == 0, "status %x of the child", status);
	}
	workload_pass();
}
