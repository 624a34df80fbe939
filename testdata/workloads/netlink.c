/* Netlink sockets of several protocols: bound, members of groups, connected to one another, with options. Called with
 * "fine" it has what criu's format has no place for, or what criu refuses. */
#include "workload.h"
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

static int make(int type, int protocol, uint32_t groups, struct sockaddr_nl *a)
{
	int fd = socket(AF_NETLINK, type, protocol);
	socklen_t n = sizeof(*a);

	CHECK(fd >= 0, "socket of protocol %d", protocol);
	memset(a, 0, n);
	a->nl_family = AF_NETLINK;
	a->nl_groups = groups;
	CHECK(bind(fd, (struct sockaddr *)a, n) == 0, "bind, protocol %d", protocol);
	CHECK(getsockname(fd, (struct sockaddr *)a, &n) == 0 && a->nl_pid, "getsockname");
	return fd;
}

static void same(int fd, const struct sockaddr_nl *want)
{
	struct sockaddr_nl a;
	socklen_t n = sizeof(a);

	CHECK(getsockname(fd, (struct sockaddr *)&a, &n) == 0, "getsockname");
	CHECK(a.nl_pid == want->nl_pid && a.nl_groups == want->nl_groups, "address %u groups %x, was %u %x", a.nl_pid, a.nl_groups,
	      want->nl_pid, want->nl_groups);
}

static void set(int fd, int level, int name, int v)
{
	CHECK(setsockopt(fd, level, name, &v, sizeof(v)) == 0, "set option %d", name);
}

static int get(int fd, int level, int name)
{
	int v = -1;
	socklen_t n = sizeof(v);

	CHECK(getsockopt(fd, level, name, &v, &n) == 0, "get option %d", name);
	return v;
}

/* Asks for the loopback device and looks for the answer. */
static void ask(int fd, uint32_t portid)
{
	struct {
		struct nlmsghdr h;
		struct ifinfomsg i;
	} req = { { sizeof(req), RTM_GETLINK, NLM_F_REQUEST, 77, 0 }, { .ifi_index = 1 } };
	char buf[16384];
	struct nlmsghdr *h = (struct nlmsghdr *)buf;

	CHECK(send(fd, &req, sizeof(req), 0) == sizeof(req), "ask");
	ssize_t n = recv(fd, buf, sizeof(buf), 0);
	CHECK(n >= (ssize_t)sizeof(*h) && h->nlmsg_type == RTM_NEWLINK && h->nlmsg_seq == 77, "answer of %zd bytes", n);
	CHECK(h->nlmsg_pid == portid, "answer to %u", h->nlmsg_pid);
}

static int quiet(int fd)
{
	struct pollfd p = { fd, POLLIN, 0 };

	return poll(&p, 1, 0) == 0;
}

int main(int argc, char **argv)
{
	int fine = argc > 1 && !strcmp(argv[1], "fine");
	char buf[64];

	workload_init();

	/* What a daemon holds that waits for devices and addresses. The groups are such as nobody has anything to say to: what
	 * has not been read when the dump comes cannot be kept, and other tests make and remove devices. */
	struct sockaddr_nl uevents_at, route_at, one_at, two_at, grouped_at;
	int uevents = make(SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT, 2, &uevents_at);
	int route = make(SOCK_RAW, NETLINK_ROUTE, RTMGRP_DECnet_IFADDR | RTMGRP_DECnet_ROUTE | RTMGRP_IPV6_PREFIX, &route_at);
	int plain = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
	CHECK(plain >= 0, "socket");
	set(route, SOL_SOCKET, SO_RCVBUF, 50000);
	set(route, SOL_SOCKET, SO_PASSCRED, 1);
	int size = get(route, SOL_SOCKET, SO_RCVBUF);

	/* Two that talk to each other, one of them connected; a group, and who is connected to it. */
	int one = make(SOCK_RAW, NETLINK_USERSOCK, 0, &one_at);
	int two = make(SOCK_RAW, NETLINK_USERSOCK, 0, &two_at);
	CHECK(connect(two, (struct sockaddr *)&one_at, sizeof(one_at)) == 0, "connect");
	int grouped = make(SOCK_RAW, NETLINK_USERSOCK, 1 << 7, &grouped_at);
	int sender = socket(AF_NETLINK, SOCK_RAW, NETLINK_USERSOCK);
	struct sockaddr_nl group = { .nl_family = AF_NETLINK, .nl_groups = 1 << 7 };
	CHECK(connect(sender, (struct sockaddr *)&group, sizeof(group)) == 0, "connect to a group");

	/* A member of a group without a number; groups beyond 32; options. */
	int member = -1, many = -1;
	if (fine) {
		member = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_USERSOCK);
		set(member, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 8);
		many = make(SOCK_RAW, NETLINK_ROUTE, 0, &one_at);
		same(many, &one_at);
		set(many, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_MPLS_ROUTE);
		set(many, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 33);
		set(many, SOL_NETLINK, NETLINK_PKTINFO, 1);
		set(many, SOL_NETLINK, NETLINK_EXT_ACK, 1);
		set(many, SOL_NETLINK, NETLINK_NO_ENOBUFS, 1);
		set(many, SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1);
	}
	socklen_t n = sizeof(one_at);
	CHECK(getsockname(one, (struct sockaddr *)&one_at, &n) == 0, "getsockname");

	workload_ready();

	same(uevents, &uevents_at);
	same(route, &route_at);
	same(one, &one_at);
	same(two, &two_at);
	same(grouped, &grouped_at);
	CHECK(fcntl(uevents, F_GETFL) & O_NONBLOCK && fcntl(uevents, F_GETFD) == FD_CLOEXEC, "flags");
	CHECK(quiet(one) && quiet(two) && quiet(grouped), "messages out of nowhere");
	CHECK(get(route, SOL_SOCKET, SO_RCVBUF) == size && get(route, SOL_SOCKET, SO_PASSCRED) == 1, "options");
	struct sockaddr_nl fresh;
	n = sizeof(fresh);
	CHECK(getsockname(plain, (struct sockaddr *)&fresh, &n) == 0 && fresh.nl_pid == 0, "bound to %u", fresh.nl_pid);

	int asker = make(SOCK_RAW, NETLINK_ROUTE, 0, &fresh);
	ask(asker, fresh.nl_pid);
	CHECK(send(two, "hello", 5, 0) == 5 && recv(one, buf, sizeof(buf), 0) == 5 && !memcmp(buf, "hello", 5), "hello");
	send(sender, "all", 3, 0); /* refused by the kernel, whom it goes to as well */
	CHECK(recv(grouped, buf, sizeof(buf), 0) == 3 && !memcmp(buf, "all", 3), "all");
	if (fine) {
		uint32_t words[8] = { 0 };
		n = sizeof(words);
		CHECK(getsockopt(member, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &n) == 0 && words[0] == 1 << 7, "groups %x", words[0]);
		n = sizeof(fresh);
		CHECK(getsockname(member, (struct sockaddr *)&fresh, &n) == 0 && fresh.nl_pid == 0, "number %u", fresh.nl_pid);
		CHECK(get(member, SOL_SOCKET, SO_TYPE) == SOCK_DGRAM, "type");
		n = sizeof(words);
		CHECK(getsockopt(many, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, words, &n) == 0, "groups");
		CHECK(words[0] == 1u << (RTNLGRP_MPLS_ROUTE - 1) && words[1] == 1, "groups %x %x", words[0], words[1]);
		CHECK(get(many, SOL_NETLINK, NETLINK_PKTINFO) == 1 && get(many, SOL_NETLINK, NETLINK_EXT_ACK) == 1 &&
		      get(many, SOL_NETLINK, NETLINK_NO_ENOBUFS) == 1 && get(many, SOL_NETLINK, NETLINK_CAP_ACK) == 0, "options");
	}
	workload_pass();
}
