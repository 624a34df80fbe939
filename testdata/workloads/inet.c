/* Sockets of IPv4 and IPv6 whose other ends are in the same task, or nowhere: every protocol, state and option that is
 * told from outside. */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/socket.h>

static void set(int fd, int level, int name, int v)
{
	CHECK(setsockopt(fd, level, name, &v, sizeof(v)) == 0, "set option %d:%d", level, name);
}

static int get(int fd, int level, int name)
{
	int v = -1;
	socklen_t n = sizeof(v);

	CHECK(getsockopt(fd, level, name, &v, &n) == 0, "get option %d:%d", level, name);
	return v;
}

/* Options of one socket, all of them numbers. */
static struct option {
	int level, name, want;
} options[] = {
	{ SOL_SOCKET, SO_PRIORITY, 5 },	    { SOL_SOCKET, SO_RCVLOWAT, 100 }, { SOL_SOCKET, SO_MARK, 7 },
	{ SOL_SOCKET, SO_KEEPALIVE, 1 },    { SOL_SOCKET, SO_OOBINLINE, 1 },  { SOL_SOCKET, SO_SNDBUF, 40000 },
	{ SOL_SOCKET, SO_RCVBUF, 60000 },   { IPPROTO_IP, IP_TOS, 0x10 },	      { IPPROTO_IP, IP_TTL, 33 },
	{ IPPROTO_IP, IP_FREEBIND, 1 },	    { IPPROTO_IP, IP_PKTINFO, 1 },	      { IPPROTO_TCP, TCP_NODELAY, 1 },
	{ IPPROTO_TCP, TCP_KEEPIDLE, 77 },  { IPPROTO_TCP, TCP_KEEPINTVL, 11 }, { IPPROTO_TCP, TCP_KEEPCNT, 4 },
};
#define NOPTIONS (sizeof(options) / sizeof(*options))

static union address {
	struct sockaddr sa;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
} any;

static socklen_t loopback(union address *a, int family)
{
	memset(a, 0, sizeof(*a));
	a->sa.sa_family = family;
	if (family == AF_INET6) {
		a->v6.sin6_addr = in6addr_loopback;
		return sizeof(a->v6);
	}
	a->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof(a->v4);
}

static int bound(int family, int type, int proto, union address *a)
{
	int fd = socket(family, type, proto);
	socklen_t n = loopback(a, family);

	CHECK(fd >= 0 && bind(fd, &a->sa, n) == 0, "bind a socket of type %d", type);
	CHECK(getsockname(fd, &a->sa, &n) == 0, "getsockname");
	return fd;
}

/* Both ends of a connection. */
static void pair(int family, int ends[2])
{
	union address a;
	int l = bound(family, SOCK_STREAM, 0, &a);

	CHECK(listen(l, 1) == 0, "listen");
	ends[0] = socket(family, SOCK_STREAM, 0);
	CHECK(connect(ends[0], &a.sa, sizeof(a)) == 0, "connect");
	ends[1] = accept(l, NULL, NULL);
	CHECK(ends[1] >= 0, "accept");
	close(l);
}

static int state(int fd)
{
	struct tcp_info i;
	socklen_t n = sizeof(i);

	CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &i, &n) == 0, "TCP_INFO");
	return i.tcpi_state;
}

static void await_state(int fd, int want)
{
	for (int i = 0; i < 1000 && state(fd) != want; i++)
		poll(NULL, 0, 10);
	CHECK(state(fd) == want, "state %d and not %d", state(fd), want);
}

static void talk(int from, int to, const char *text)
{
	char buf[256];
	size_t n = strlen(text), got = 0;

	CHECK(write(from, text, n) == (ssize_t)n, "write");
	while (got < n) {
		ssize_t r = read(to, buf + got, sizeof(buf) - got);
		CHECK(r > 0, "read after %zu bytes", got);
		got += r;
	}
	CHECK(memcmp(buf, text, n) == 0, "other data");
}

int main(void)
{
	workload_init();

	/* A listener with options, which two sockets share by SO_REUSEPORT. */
	union address shared;
	int listeners[2];
	listeners[0] = socket(AF_INET, SOCK_STREAM, 0);
	set(listeners[0], SOL_SOCKET, SO_REUSEPORT, 1);
	socklen_t n = loopback(&shared, AF_INET);
	CHECK(bind(listeners[0], &shared.sa, n) == 0 && getsockname(listeners[0], &shared.sa, &n) == 0, "bind");
	listeners[1] = socket(AF_INET, SOCK_STREAM, 0);
	set(listeners[1], SOL_SOCKET, SO_REUSEPORT, 1);
	CHECK(bind(listeners[1], &shared.sa, n) == 0, "bind once more");
	for (int i = 0; i < 2; i++)
		CHECK(listen(listeners[i], 7) == 0, "listen");

	union address mine;
	int plain = bound(AF_INET, SOCK_STREAM, 0, &mine);
	for (unsigned i = 0; i < NOPTIONS; i++)
		set(plain, options[i].level, options[i].name, options[i].want);
	/* Sizes are doubled, and IP_TOS sets the priority as well. */
	for (unsigned i = 0; i < NOPTIONS; i++)
		options[i].want = get(plain, options[i].level, options[i].name);
	struct linger linger = { 1, 9 };
	CHECK(setsockopt(plain, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) == 0, "SO_LINGER");
	struct sock_filter all = { BPF_RET | BPF_K, 0, 0, 0xffffffff };
	struct sock_fprog prog = { 1, &all };
	CHECK(setsockopt(plain, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)) == 0, "SO_ATTACH_FILTER");

	/* A pair of UDP sockets, one of which does not send any more; UDP-Lite; ICMP, raw. */
	union address here, there;
	int udp[2] = { bound(AF_INET6, SOCK_DGRAM, 0, &here), bound(AF_INET6, SOCK_DGRAM, 0, &there) };
	CHECK(connect(udp[0], &there.sa, sizeof(there.v6)) == 0 && connect(udp[1], &here.sa, sizeof(here.v6)) == 0, "connect");
	CHECK(shutdown(udp[1], SHUT_WR) == 0, "shutdown");
	set(udp[0], IPPROTO_UDP, UDP_CORK, 1);
	int lite = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
	int raw = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
	CHECK(lite >= 0 || errno == EPROTONOSUPPORT, "UDP-Lite");
	CHECK(raw >= 0, "raw socket");
	struct icmp6_filter filter, got;
	ICMP6_FILTER_SETBLOCKALL(&filter);
	ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &filter);
	CHECK(setsockopt(raw, IPPROTO_ICMPV6, ICMP6_FILTER, &filter, sizeof(filter)) == 0, "ICMP6_FILTER");

	/* A listener as Go makes it, of MPTCP where the kernel has it. */
	int mp = socket(AF_INET6, SOCK_STREAM, 262 /* IPPROTO_MPTCP */);
	if (mp < 0)
		mp = socket(AF_INET6, SOCK_STREAM, 0);
	set(mp, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	any.v6.sin6_family = AF_INET6;
	CHECK(bind(mp, &any.sa, sizeof(any.v6)) == 0 && listen(mp, 5) == 0, "MPTCP listener");
	n = sizeof(any.v6);
	getsockname(mp, &any.sa, &n);

	/* Connections: with data in both directions, closed by one side, by both. */
	int conn[2], half[2], both[2];
	pair(AF_INET, conn);
	pair(AF_INET6, half);
	pair(AF_INET, both);
	CHECK(write(conn[0], "to be read", 10) == 10 && write(conn[1], "answer", 6) == 6, "write");
	CHECK(write(half[0], "last words", 10) == 10 && shutdown(half[0], SHUT_WR) == 0, "shutdown");
	await_state(half[0], TCP_FIN_WAIT2);
	await_state(half[1], TCP_CLOSE_WAIT);
	CHECK(shutdown(both[0], SHUT_RD) == 0, "shutdown");

	workload_ready();

	char buf[32];
	CHECK(read(conn[1], buf, sizeof(buf)) == 10 && memcmp(buf, "to be read", 10) == 0, "queue");
	CHECK(read(conn[0], buf, sizeof(buf)) == 6 && memcmp(buf, "answer", 6) == 0, "queue of the other side");
	talk(conn[0], conn[1], "one way");
	talk(conn[1], conn[0], "and back");
	CHECK(state(half[0]) == TCP_FIN_WAIT2 && state(half[1]) == TCP_CLOSE_WAIT, "states %d, %d", state(half[0]), state(half[1]));
	CHECK(read(half[1], buf, sizeof(buf)) == 10 && read(half[1], buf, sizeof(buf)) == 0, "last words");
	talk(half[1], half[0], "still here");
	CHECK(read(both[0], buf, sizeof(buf)) == 0, "read from a side that is shut");
	talk(both[0], both[1], "out");

	for (unsigned i = 0; i < NOPTIONS; i++) {
		int v = get(plain, options[i].level, options[i].name);
		CHECK(v == options[i].want, "option %d:%d is %d, was %d", options[i].level, options[i].name, v, options[i].want);
	}
	struct linger l;
	n = sizeof(l);
	CHECK(getsockopt(plain, SOL_SOCKET, SO_LINGER, &l, &n) == 0 && l.l_onoff && l.l_linger == 9, "SO_LINGER");
	n = 0;
	CHECK(getsockopt(plain, SOL_SOCKET, SO_GET_FILTER, NULL, &n) == 0 && n == 1, "filter of %u", n);
	CHECK(get(plain, SOL_SOCKET, SO_REUSEADDR) == 0 && get(plain, SOL_SOCKET, SO_REUSEPORT) == 0, "SO_REUSEADDR");
	for (int i = 0; i < 2; i++)
		CHECK(get(listeners[i], SOL_SOCKET, SO_REUSEPORT) == 1 && get(listeners[i], SOL_SOCKET, SO_ACCEPTCONN), "listener");

	CHECK(get(udp[0], IPPROTO_UDP, UDP_CORK) == 1 && get(udp[1], IPPROTO_UDP, UDP_CORK) == 0, "UDP_CORK");
	set(udp[0], IPPROTO_UDP, UDP_CORK, 0);
	talk(udp[0], udp[1], "datagram");
	CHECK(send(udp[1], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE, "sent by a side that is shut");
	n = sizeof(got);
	CHECK(getsockopt(raw, IPPROTO_ICMPV6, ICMP6_FILTER, &got, &n) == 0 && memcmp(&got, &filter, sizeof(got)) == 0, "filter");

	int client = socket(AF_INET, SOCK_STREAM, 0);
	union address v4;
	n = loopback(&v4, AF_INET);
	v4.v4.sin_port = any.v6.sin6_port;
	CHECK(connect(client, &v4.sa, n) == 0, "connect to the MPTCP listener");
	int server = accept(mp, NULL, NULL);
	CHECK(server >= 0, "accept");
	talk(client, server, "new");
	workload_pass();
}
