/* Helpers of the workloads with unix sockets. */
#ifndef UNIXSOCK_H
#define UNIXSOCK_H

#include "workload.h"
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Names that no other instance on this host has. */
static char unique[32];

static __attribute__((unused)) socklen_t address(struct sockaddr_un *a, const char *name)
{
	int n;

	a->sun_family = AF_UNIX;
	if (name[0] != '@') {
		strcpy(a->sun_path, name);
		return offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1;
	}
	n = snprintf(a->sun_path + 1, sizeof(a->sun_path) - 1, "%s-%s", unique, name + 1);
	a->sun_path[0] = 0;
	return offsetof(struct sockaddr_un, sun_path) + 1 + n;
}

static __attribute__((unused)) int bound(int type, const char *name)
{
	struct sockaddr_un a;
	socklen_t len = address(&a, name);
	int fd = socket(AF_UNIX, type, 0);

	CHECK(fd >= 0 && !bind(fd, (void *)&a, len), "bind %s", name);
	return fd;
}

static __attribute__((unused)) int joined(int fd, const char *name)
{
	struct sockaddr_un a;
	socklen_t len = address(&a, name);

	return connect(fd, (void *)&a, len);
}

static __attribute__((unused)) int named(int fd, const char *name)
{
	struct sockaddr_un a, b;
	socklen_t want = address(&a, name), len = sizeof(b);

	return !getsockname(fd, (void *)&b, &len) && len == want && !memcmp(&a, &b, len);
}

static __attribute__((unused)) void send_fd(int via, int fd, const char *text)
{
	char c[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { (char *)text, strlen(text) };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof(c) };
	struct cmsghdr *m = CMSG_FIRSTHDR(&h);

	m->cmsg_level = SOL_SOCKET;
	m->cmsg_type = SCM_RIGHTS;
	m->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(m), &fd, sizeof(int));
	CHECK(sendmsg(via, &h, 0) == (ssize_t)iov.iov_len, "send a descriptor");
}

static __attribute__((unused)) int receive_fd(int via, const char *text)
{
	char c[CMSG_SPACE(sizeof(int))], b[64];
	struct iovec iov = { b, sizeof(b) };
	struct msghdr h = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof(c) };
	ssize_t n = recvmsg(via, &h, MSG_DONTWAIT);
	struct cmsghdr *m = CMSG_FIRSTHDR(&h);
	int fd = -1;

	CHECK(n == (ssize_t)strlen(text) && !memcmp(b, text, n), "text that came with a descriptor: %zd bytes", n);
	CHECK(m && m->cmsg_type == SCM_RIGHTS && m->cmsg_len == CMSG_LEN(sizeof(int)), "descriptor");
	memcpy(&fd, CMSG_DATA(m), sizeof(int));
	return fd;
}

static __attribute__((unused)) int reads(int fd, const char *text)
{
	char b[256];
	ssize_t n = recv(fd, b, sizeof(b), MSG_DONTWAIT);

	return n == (ssize_t)strlen(text) && !memcmp(b, text, n);
}

static __attribute__((unused)) int option(int fd, int name)
{
	int v = -1;
	socklen_t len = sizeof(v);

	CHECK(!getsockopt(fd, SOL_SOCKET, name, &v, &len), "getsockopt %d", name);
	return v;
}

#endif
