/* A server with one client outside of the tree: it listens at the address given, tells the port in the file "port", and
 * echoes what it gets from its first client. Told to go on it says whether the client has closed. */
#include "workload.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>

static int client;
static int closed;

static void *echo(void *unused)
{
	char buf[65536];
	ssize_t n;

	while ((n = read(client, buf, sizeof(buf))) > 0)
		for (ssize_t done = 0, w; done < n; done += w)
			CHECK((w = write(client, buf + done, n - done)) > 0, "write");
	CHECK(n == 0, "read");
	closed = 1;
	return unused;
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 a = { .sin6_family = AF_INET6 };
	socklen_t n = sizeof(a);
	pthread_t thread;
	char text[16];

	workload_init();
	int l = socket(AF_INET6, SOCK_STREAM, 0);
	int yes = 1;
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)); /* as every server does */
	CHECK(argc == 2 && inet_pton(AF_INET6, argv[1], &a.sin6_addr) == 1, "address");
	CHECK(bind(l, (void *)&a, n) == 0 && listen(l, 5) == 0 && getsockname(l, (void *)&a, &n) == 0, "listen");
	snprintf(text, sizeof(text), "%d", ntohs(a.sin6_port));
	workload_write("port", text);
	client = accept(l, NULL, NULL);
	CHECK(client >= 0, "accept");
	CHECK(pthread_create(&thread, NULL, echo, NULL) == 0, "thread");
	workload_ready();
	pthread_join(thread, NULL);
	CHECK(closed, "the client has not closed");
	workload_pass();
}
