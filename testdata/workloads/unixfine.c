/* What of unix sockets criu's images or its dump lose: addresses and ids of senders, empty messages, names of accepted
 * connections, a directory that is gone, bytes before a descriptor. */
#include "unixsock.h"

/* The sender's pid, 0 when nothing is told. */
static pid_t from_whom(int fd, const char *text, uid_t *uid)
{
	char c[CMSG_SPACE(sizeof(struct ucred))], b[64];
	struct iovec iov = { b, sizeof(b) };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof(c) };
	ssize_t n = recvmsg(fd, &h, MSG_DONTWAIT);
	struct cmsghdr *m = CMSG_FIRSTHDR(&h);
	struct ucred u = { 0 };

	CHECK(n == (ssize_t)strlen(text) && !memcmp(b, text, n), "message with credentials: %zd bytes", n);
	if (m && m->cmsg_type == SCM_CREDENTIALS)
		memcpy(&u, CMSG_DATA(m), sizeof(u));
	*uid = u.uid;
	return u.pid;
}

static int comes_from(int fd, const char *text, const char *name)
{
	struct sockaddr_un a, b;
	socklen_t want = name ? address(&a, name) : 0, len = sizeof(b);
	char t[64];
	ssize_t n = recvfrom(fd, t, sizeof(t), MSG_DONTWAIT, (void *)&b, &len);

	return n == (ssize_t)strlen(text) && !memcmp(t, text, n) && len == want && (!name || !memcmp(&a, &b, len));
}

static void send_from(int fd, const char *text, const char *to)
{
	struct sockaddr_un a;
	socklen_t len = address(&a, to);

	CHECK(sendto(fd, text, strlen(text), 0, (void *)&a, len) == (ssize_t)strlen(text), "send to %s", to);
}

/* Says whether the other end is a task with these ids. */
static int peer_is(int fd, pid_t pid, uid_t uid, gid_t gid)
{
	struct ucred u;
	socklen_t len = sizeof(u);

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &u, &len) && u.pid == pid && u.uid == uid && u.gid == gid;
}

int main(void)
{
	int d[2], own[2], fl[2], cr[2], srv, c1, c2, c3, lis, abs, cl[2], acc[2], nodir, r, p[2], on = 1;
	struct stat st;
	uid_t uid;

	workload_init();
	snprintf(unique, sizeof(unique), "cryo-%d", getpid());

	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, d), "pair");
	CHECK(send(d[0], "one", 3, 0) == 3 && send(d[0], "", 0, 0) == 0 && send(d[0], "three", 5, 0) == 5, "empty message");

	/* Senders: one that lives, one that has gone, one whose name is taken since, one without a name. */
	srv = bound(SOCK_DGRAM, "@srv");
	c1 = bound(SOCK_DGRAM, "c1");
	c2 = bound(SOCK_DGRAM, "@c2");
	c3 = bound(SOCK_DGRAM, "c3");
	send_from(c1, "1", "@srv");
	send_from(c2, "2", "@srv");
	send_from(c3, "3", "@srv");
	send_from(socket(AF_UNIX, SOCK_DGRAM, 0), "4", "@srv");
	send_from(c1, "5", "@srv");
	CHECK(!close(c2) && !close(c3), "close");

	/* Accepted connections have the name of their listener. */
	lis = bound(SOCK_STREAM, "listener");
	abs = bound(SOCK_STREAM, "@listener");
	CHECK(!chmod("listener", 0666) && !listen(lis, 1) && !listen(abs, 1), "listen");
	for (int i = 0; i < 2; i++) {
		cl[i] = socket(AF_UNIX, SOCK_STREAM, 0);
		CHECK(!joined(cl[i], i ? "@listener" : "listener"), "connect");
		acc[i] = accept(i ? abs : lis, NULL, NULL);
		CHECK(acc[i] >= 0, "accept");
	}

	CHECK(!mkdir("sub", 0755), "mkdir");
	nodir = bound(SOCK_STREAM, "sub/nodir");
	CHECK(!listen(nodir, 3) && !unlink("sub/nodir") && !rmdir("sub"), "directory gone");

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, fl) && !pipe(p), "in flight");
	CHECK(write(fl[0], "plain", 5) == 5 && write(fl[0], "er", 2) == 2, "in flight");
	send_fd(fl[0], p[0], "A");
	CHECK(write(fl[0], "end", 3) == 3, "in flight");

	/* Two senders with ids of their own. */
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, cr), "pair");
	CHECK(!setsockopt(cr[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)), "SO_PASSCRED");
	CHECK(!setegid(300) && !seteuid(200) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, own), "pair of another user");
	CHECK(!seteuid(0) && !setegid(0), "ids");
	CHECK(peer_is(own[0], getpid(), 200, 300), "pair of another user");
	pid_t child = fork();
	if (!child) {
		int sk = socket(AF_UNIX, SOCK_STREAM, 0);
		if (setresgid(1001, 1001, 0) || setresuid(1000, 1000, 0) || joined(sk, "listener") || write(cr[0], "child", 5) != 5)
			_exit(1);
		workload_wait();
		_exit(0);
	}
	struct timespec ts = { 0, 1000000 };
	int queued = 0;
	while (ioctl(cr[1], FIONREAD, &queued) || queued != 5)
		nanosleep(&ts, NULL);
	CHECK(write(cr[0], "parent", 6) == 6, "parent");

	workload_ready();

	CHECK(reads(d[1], "one") && reads(d[1], "") && reads(d[1], "three"), "empty message");
	CHECK(comes_from(srv, "1", "c1"), "sender that lives");
	CHECK(comes_from(srv, "2", "@c2") && comes_from(srv, "3", "c3"), "senders that have gone");
	CHECK(comes_from(srv, "4", NULL) && comes_from(srv, "5", "c1"), "sender without a name");
	for (int i = 0; i < 2; i++) {
		const char *name = i ? "@listener" : "listener";
		CHECK(named(acc[i], name), "accepted connection's name %d", i);
		CHECK(write(cl[i], "x", 1) == 1 && reads(acc[i], "x"), "accepted connection %d", i);
	}
	int client = accept4(lis, NULL, NULL, SOCK_NONBLOCK);
	CHECK(client >= 0 && peer_is(client, child, 1000, 1001), "waiting connection");
	CHECK(peer_is(own[0], getpid(), 200, 300) && peer_is(own[1], getpid(), 200, 300), "pair of another user");
	CHECK(peer_is(cl[0], getpid(), 0, 0), "connection");
	CHECK(!joined(socket(AF_UNIX, SOCK_STREAM, 0), "listener") && !joined(socket(AF_UNIX, SOCK_STREAM, 0), "@listener"), "connect again");
	CHECK(named(nodir, "sub/nodir") && stat("sub", &st) < 0 && option(nodir, SO_ACCEPTCONN), "directory gone");

	char text[8] = "";
	CHECK(recv(fl[1], text, 7, MSG_DONTWAIT) == 7 && !strcmp(text, "plainer"), "bytes before a descriptor: %s", text);
	r = receive_fd(fl[1], "A");
	CHECK(write(p[1], "p", 1) == 1 && read(r, text, 1) == 1 && text[0] == 'p' && reads(fl[1], "end"), "descriptor");

	CHECK(from_whom(cr[1], "child", &uid) == child && uid == 1000, "sender's ids");
	CHECK(from_whom(cr[1], "parent", &uid) == getpid() && uid == 0, "sender's ids");
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0, "child");
	workload_pass();
}
