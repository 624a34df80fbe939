/* Unix sockets of every kind: pairs, listeners, names, queues with their boundaries, descriptors in flight, options. */
#include "unixsock.h"
#include <sys/epoll.h>

int main(void)
{
	int a[2], d[2], q[2], half[2], gone[2], fl[2], inner[2], p[2], ss[2];
	int lis, wait1, wait2, lisq, waitq, cl, acc, dsrv, dcl, dself, del, rel, un, autob, ep;
	struct sockaddr_un aname;
	socklen_t alen = sizeof(aname);
	struct timeval tv = { 7, 500000 };
	struct epoll_event ev = { EPOLLIN, { .u64 = 77 } };
	struct stat st;
	int val, status;

	workload_init();
	signal(SIGPIPE, SIG_IGN);
	snprintf(unique, sizeof(unique), "cryo-%d", getpid());

	/* Pairs with data in both directions, messages with boundaries. */
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, d), "pairs");
	CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, q), "seqpacket");
	CHECK(write(a[0], "stream", 6) == 6 && write(a[0], "ing", 3) == 3 && write(a[1], "back", 4) == 4, "stream");
	CHECK(send(d[0], "one", 3, 0) == 3 && send(d[0], "three", 5, 0) == 5, "dgram");
	CHECK(send(q[1], "uno", 3, 0) == 3 && send(q[1], "due", 3, 0) == 3, "seqpacket");

	/* One end that sends no more; one whose other end has gone and left something behind. */
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, half) && !socketpair(AF_UNIX, SOCK_STREAM, 0, gone), "pairs");
	CHECK(write(half[0], "last", 4) == 4 && !shutdown(half[0], SHUT_WR), "shutdown");
	CHECK(write(gone[1], "will", 4) == 4 && !close(gone[1]), "close");

	/* A listener with connections: accepted, and two that wait. */
	lis = bound(SOCK_STREAM, "listener");
	CHECK(!chmod("listener", 0640) && !listen(lis, 5), "listen");
	cl = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(!joined(cl, "listener") && (acc = accept(lis, NULL, NULL)) >= 0, "accept");
	CHECK(write(cl, "hi", 2) == 2, "accepted");
	wait1 = socket(AF_UNIX, SOCK_STREAM, 0);
	wait2 = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(!joined(wait1, "listener") && !joined(wait2, "listener"), "waiting connections");
	lisq = bound(SOCK_SEQPACKET, "@lisq");
	waitq = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	CHECK(!listen(lisq, 1) && !joined(waitq, "@lisq"), "waiting connection");

	/* Datagram sockets: a server with a client, one that talks to itself. */
	dsrv = bound(SOCK_DGRAM, "@dsrv");
	dcl = bound(SOCK_DGRAM, "dcl");
	CHECK(!joined(dcl, "@dsrv") && send(dcl, "to you", 6, 0) == 6, "dgram client");
	dself = bound(SOCK_DGRAM, "@dself");
	CHECK(!joined(dself, "@dself") && send(dself, "to me", 5, 0) == 5, "connected to itself");

	/* Names: deleted, relative to a directory since left, chosen by the kernel, none. */
	del = bound(SOCK_DGRAM, "deleted");
	CHECK(!unlink("deleted"), "unlink");
	CHECK(!mkdir("cwd", 0755) && !chdir("cwd"), "cwd");
	rel = bound(SOCK_STREAM, "rel");
	CHECK(!listen(rel, 1) && !chdir(".."), "relative");
	autob = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(!bind(autob, (void *)&(sa_family_t){ AF_UNIX }, sizeof(sa_family_t)), "autobind");
	CHECK(!getsockname(autob, (void *)&aname, &alen), "autobind");
	un = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	/* Descriptors in flight: a pipe held by nobody, a socket with something in its own queue, an epoll set. */
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, fl) && !socketpair(AF_UNIX, SOCK_DGRAM, 0, inner) && !pipe(p), "in flight");
	CHECK(write(p[1], "pipe", 4) == 4 && send(inner[0], "inside", 6, 0) == 6, "in flight");
	ep = epoll_create1(0);
	CHECK(!epoll_ctl(ep, EPOLL_CTL_ADD, a[0], &ev), "epoll");
	send_fd(fl[0], p[0], "A");
	send_fd(inner[0], p[1], "nested");
	send_fd(fl[0], inner[1], "BC");
	send_fd(fl[0], ep, "D");
	CHECK(!close(p[0]) && !close(p[1]) && !close(inner[1]) && !close(ep), "in flight");

	/* Options. */
	val = 50000;
	CHECK(!setsockopt(a[0], SOL_SOCKET, SO_SNDBUF, &val, sizeof(val)), "SO_SNDBUF");
	CHECK(!setsockopt(a[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)), "SO_RCVTIMEO");
	val = 1;
	CHECK(!setsockopt(un, SOL_SOCKET, SO_PASSCRED, &val, sizeof(val)), "SO_PASSCRED");
	int sndbuf = option(a[0], SO_SNDBUF);

	/* Shared with a child, which talks to its parent over another pair. */
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, ss), "pair");
	pid_t child = fork();
	if (!child) {
		char c;
		close(ss[0]);
		_exit(read(ss[1], &c, 1) != 1 || write(d[1], "child", 5) != 5 || write(ss[1], &c, 1) != 1);
	}
	close(ss[1]);

	workload_ready();

	CHECK(reads(a[1], "streaming") && reads(a[0], "back"), "stream pair");
	CHECK(reads(d[1], "one") && reads(d[1], "three"), "dgram pair");
	CHECK(reads(q[0], "uno") && reads(q[0], "due"), "seqpacket pair");
	CHECK(fcntl(a[0], F_GETFD) == FD_CLOEXEC && fcntl(q[0], F_GETFL) == (O_RDWR | O_NONBLOCK) && fcntl(d[0], F_GETFL) == O_RDWR, "flags");
	CHECK(reads(half[1], "last") && recv(half[1], &st, 1, 0) == 0, "half closed");
	CHECK(write(half[0], "x", 1) < 0 && errno == EPIPE && write(half[1], "x", 1) == 1 && reads(half[0], "x"), "half closed");
	CHECK(reads(gone[0], "will") && recv(gone[0], &st, 1, 0) == 0 && write(gone[0], "x", 1) < 0 && errno == EPIPE, "closed");

	CHECK(!stat("listener", &st) && S_ISSOCK(st.st_mode) && (st.st_mode & 07777) == 0640, "listener's file");
	CHECK(named(lis, "listener") && reads(acc, "hi"), "accepted connection");
	for (int i = 0; i < 2; i++) {
		int s = accept4(lis, NULL, NULL, SOCK_NONBLOCK);
		CHECK(s >= 0 && write(s, "welcome", 7) == 7, "waiting connection %d", i);
	}
	CHECK(reads(wait1, "welcome") && reads(wait2, "welcome"), "waiting connections");
	CHECK(!joined(socket(AF_UNIX, SOCK_STREAM, 0), "listener"), "connect again");
	CHECK(accept(lisq, NULL, NULL) >= 0 && option(lisq, SO_ACCEPTCONN), "sequential packets");

	CHECK(reads(dsrv, "to you") && send(dcl, "again", 5, 0) == 5 && reads(dsrv, "again"), "dgram client");
	CHECK(reads(dself, "to me") && send(dself, "me", 2, 0) == 2 && reads(dself, "me"), "connected to itself");
	CHECK(named(del, "deleted") && stat("deleted", &st) < 0, "deleted name");
	CHECK(named(rel, "rel") && !stat("cwd/rel", &st) && !joined(socket(AF_UNIX, SOCK_STREAM, 0), "cwd/rel"), "relative name");
	struct sockaddr_un b;
	socklen_t len = sizeof(b);
	CHECK(!getsockname(autob, (void *)&b, &len) && len == alen && !memcmp(&b, &aname, len), "autobind");
	CHECK(!joined(un, "@lisq") || errno == EAGAIN, "unconnected");

	p[0] = receive_fd(fl[1], "A");
	inner[1] = receive_fd(fl[1], "BC");
	ep = receive_fd(fl[1], "D");
	char four[5] = "";
	CHECK(read(p[0], four, 4) == 4 && !strcmp(four, "pipe"), "pipe in flight");
	CHECK(reads(inner[1], "inside"), "queue in flight");
	p[1] = receive_fd(inner[1], "nested");
	CHECK(write(p[1], "more", 4) == 4 && read(p[0], four, 4) == 4 && !strcmp(four, "more"), "nested pipe");
	CHECK(write(a[1], "!", 1) == 1 && epoll_wait(ep, &ev, 1, 0) == 1 && ev.data.u64 == 77, "epoll in flight");

	CHECK(option(a[0], SO_SNDBUF) == sndbuf && option(a[1], SO_SNDBUF) != sndbuf, "SO_SNDBUF %d", option(a[1], SO_SNDBUF));
	memset(&tv, 0, sizeof(tv));
	len = sizeof(tv);
	CHECK(!getsockopt(a[1], SOL_SOCKET, SO_RCVTIMEO, &tv, &len) && tv.tv_sec == 7 && tv.tv_usec == 500000, "SO_RCVTIMEO");
	CHECK(option(un, SO_PASSCRED) == 1 && option(a[0], SO_PASSCRED) == 0, "SO_PASSCRED");

	CHECK(write(ss[0], "c", 1) == 1 && read(ss[0], four, 1) == 1, "child");
	CHECK(waitpid(child, &status, 0) == child && status == 0, "child: %d", status);
	CHECK(reads(d[0], "child"), "shared with the child");
	workload_pass();
}
