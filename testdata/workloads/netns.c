/* A network namespace of the program's own: loopback with a second address, a route, a rule, settings, and sockets in
 * there. A child shares it. */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/route.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define ADDRESS "10.98.76.5"
#define BEHIND "10.55.0.1"
#define QLEN "/proc/sys/net/unix/max_dgram_qlen"
#define FORWARDING "/proc/sys/net/ipv4/conf/lo/forwarding"

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write %s", path);
	close(fd);
}

static int number(const char *path)
{
	char buf[32] = "";
	int fd = open(path, O_RDONLY);

	CHECK(fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0, "read %s", path);
	close(fd);
	return atoi(buf);
}

static struct sockaddr_in address(const char *text)
{
	struct sockaddr_in a = { .sin_family = AF_INET };

	inet_pton(AF_INET, text, &a.sin_addr);
	return a;
}

/* Brings loopback up and gives it an address under a label. */
static void configure(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq r = { .ifr_name = "lo" };

	CHECK(fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &r) == 0, "flags");
	r.ifr_flags |= IFF_UP;
	CHECK(ioctl(fd, SIOCSIFFLAGS, &r) == 0, "up");
	r.ifr_mtu = 20000;
	CHECK(ioctl(fd, SIOCSIFMTU, &r) == 0, "mtu");
	strcpy(r.ifr_name, "lo:1");
	*(struct sockaddr_in *)&r.ifr_addr = address(ADDRESS);
	CHECK(ioctl(fd, SIOCSIFADDR, &r) == 0, "address");
	struct rtentry route = { .rt_flags = RTF_UP | RTF_HOST, .rt_dev = "lo" };
	*(struct sockaddr_in *)&route.rt_dst = address(BEHIND);
	CHECK(ioctl(fd, SIOCADDRT, &route) == 0, "route");
	close(fd);
	put(QLEN, "77");
	put(FORWARDING, "1");
}

int main(void)
{
	int ends[2], status;
	char buf[16];

	workload_init();
	CHECK(unshare(CLONE_NEWNET) == 0, "unshare");
	configure();

	struct sockaddr_in a = address(ADDRESS);
	socklen_t n = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(bind(l, (struct sockaddr *)&a, n) == 0 && listen(l, 3) == 0 && getsockname(l, (struct sockaddr *)&a, &n) == 0, "listen");
	ends[0] = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(connect(ends[0], (struct sockaddr *)&a, n) == 0, "connect");
	ends[1] = accept(l, NULL, NULL);
	CHECK(ends[1] >= 0, "accept");
	CHECK(write(ends[0], "queued", 6) == 6, "write");
	/* A name that is taken in the namespace the tool is in would be free here, and the other way round. */
	struct sockaddr_un u = { .sun_family = AF_UNIX, .sun_path = "\0cryo netns workload" };
	int named = socket(AF_UNIX, SOCK_DGRAM, 0), raw = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
	CHECK(raw >= 0 && bind(named, (struct sockaddr *)&u, sizeof(u)) == 0, "bind");
	int nl = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	struct sockaddr_nl group = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	CHECK(bind(nl, (struct sockaddr *)&group, sizeof(group)) == 0, "netlink");
	int pipes[2];
	CHECK(pipe(pipes) == 0, "pipe");
	pid_t child = fork();
	if (!child) {
		close(pipes[1]);
		if (read(pipes[0], buf, 1) != 1)
			_exit(1);
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		_exit(connect(fd, (struct sockaddr *)&a, n) ? 2 : 0);
	}

	workload_ready();

	CHECK(read(ends[1], buf, sizeof(buf)) == 6 && !memcmp(buf, "queued", 6), "queue");
	CHECK(write(ends[1], "back", 4) == 4 && read(ends[0], buf, sizeof(buf)) == 4, "connection");
	CHECK(write(pipes[1], "x", 1) == 1 && waitpid(child, &status, 0) == child && status == 0, "status %x of the child", status);
	CHECK(number(QLEN) == 77 && number(FORWARDING) == 1, "settings %d, %d", number(QLEN), number(FORWARDING));

	struct ifreq r = { .ifr_name = "lo:1" };
	CHECK(ioctl(l, SIOCGIFADDR, &r) == 0 && ((struct sockaddr_in *)&r.ifr_addr)->sin_addr.s_addr == a.sin_addr.s_addr, "address");
	strcpy(r.ifr_name, "lo");
	CHECK(ioctl(l, SIOCGIFMTU, &r) == 0 && r.ifr_mtu == 20000, "MTU %d", r.ifr_mtu);
	struct sockaddr_in far = address(BEHIND);
	far.sin_port = htons(9);
	int probe = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(connect(probe, (struct sockaddr *)&far, sizeof(far)) == 0, "route");
	int again = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(bind(again, (struct sockaddr *)&u, sizeof(u)) < 0 && errno == EADDRINUSE, "the name is free");
	workload_pass();
}
