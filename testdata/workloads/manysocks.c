/*
 * Many sockets: argv[1] pairs of unix sockets with a byte on the way in each, argv[2] TCP listeners, argv[3] UDP sockets, all
 * on ports the kernel has chosen.
 */
#include "workload.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

/* An address that nobody else uses: its ports are still free when the program comes back. */
static struct sockaddr_in loopback(void)
{
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 0x400000 + getpid() % 0x3f0000) };
}

static struct sockaddr_in name_of(int fd)
{
	struct sockaddr_in a;
	socklen_t len = sizeof(a);

	CHECK(!getsockname(fd, (struct sockaddr *)&a, &len), "name of %d", fd);
	return a;
}

static int bound(int type)
{
	struct sockaddr_in a = loopback();
	int fd = socket(AF_INET, type, 0);

	CHECK(fd >= 0 && !bind(fd, (struct sockaddr *)&a, sizeof(a)), "socket of type %d", type);
	return fd;
}

int main(int argc, char **argv)
{
	int pairs = argc > 1 ? atoi(argv[1]) : 20, listeners = argc > 2 ? atoi(argv[2]) : 10, udps = argc > 3 ? atoi(argv[3]) : 10;
	int(*p)[2] = calloc(pairs, sizeof(*p)), *l = calloc(listeners, sizeof(*l)), *u = calloc(udps, sizeof(*u));
	in_port_t *ports = calloc(listeners + udps, sizeof(*ports));
	struct rlimit lim;
	char c;

	workload_init();
	CHECK(!getrlimit(RLIMIT_NOFILE, &lim), "limit");
	lim.rlim_cur = lim.rlim_max;
	CHECK(!setrlimit(RLIMIT_NOFILE, &lim), "limit");
	for (int i = 0; i < pairs; i++) {
		c = (char)(i * 7);
		CHECK(!socketpair(AF_UNIX, i % 2 ? SOCK_DGRAM : SOCK_STREAM, 0, p[i]) && write(p[i][1], &c, 1) == 1, "pair %d", i);
	}
	for (int i = 0; i < listeners; i++) {
		l[i] = bound(SOCK_STREAM);
		CHECK(!listen(l[i], 16), "listener %d", i);
		ports[i] = name_of(l[i]).sin_port;
	}
	for (int i = 0; i < udps; i++) {
		u[i] = bound(SOCK_DGRAM);
		ports[listeners + i] = name_of(u[i]).sin_port;
	}
	workload_ready();
	for (int i = 0; i < pairs; i++) {
		CHECK(read(p[i][0], &c, 1) == 1 && c == (char)(i * 7), "pair %d", i);
		CHECK(write(p[i][0], "x", 1) == 1 && read(p[i][1], &c, 1) == 1 && c == 'x', "the other way of pair %d", i);
	}
	for (int i = 0; i < listeners; i++) {
		struct sockaddr_in a = name_of(l[i]);
		int fd = socket(AF_INET, SOCK_STREAM, 0), got;

		CHECK(a.sin_port == ports[i], "port of listener %d", i);
		CHECK(!connect(fd, (struct sockaddr *)&a, sizeof(a)) && (got = accept(l[i], NULL, NULL)) >= 0, "connection to listener %d", i);
		close(got);
		close(fd);
	}
	for (int i = 0; i < udps; i++) {
		struct sockaddr_in a = name_of(u[i]);

		CHECK(a.sin_port == ports[listeners + i], "port of UDP socket %d", i);
		CHECK(sendto(u[i], "y", 1, 0, (struct sockaddr *)&a, sizeof(a)) == 1 && read(u[i], &c, 1) == 1 && c == 'y', "UDP socket %d", i);
	}
	workload_pass();
}
