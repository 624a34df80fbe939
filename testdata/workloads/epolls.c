/* A server between two events: sets of watched files, nested, with what has happened and what has been told of it. */
#include "workload.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

enum { PIPE = 1, EDGE, ONCE, INNER, GONE, QUIET };

static void watch(int set, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };

	CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &e), "watch %d", fd);
}

/* What a set has to tell, a bit for each; each is told of what it asked for. */
static unsigned told(int set)
{
	struct epoll_event e[16];
	unsigned all = 0;
	int n = epoll_wait(set, e, 16, 0);

	CHECK(n >= 0, "wait");
	for (int i = 0; i < n; i++) {
		CHECK(e[i].events == EPOLLIN, "%llu: events %x", (unsigned long long)e[i].data.u64, e[i].events);
		all |= 1u << e[i].data.u64;
	}
	return all;
}

int main(void)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLONESHOT, .data.u64 = ONCE };
	int line[2], pair[2], gone[2], quiet[2];
	uint64_t count = 3;

	workload_init();
	int outer = epoll_create1(EPOLL_CLOEXEC), inner = epoll_create1(0), counter = eventfd(0, EFD_NONBLOCK);
	CHECK(outer >= 0 && inner >= 0 && counter >= 0 && !pipe(line) && !pipe(gone) && !pipe(quiet), "files");
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "pair");

	watch(outer, line[0], EPOLLIN, PIPE);
	watch(inner, line[0], EPOLLIN, PIPE);
	watch(outer, inner, EPOLLIN, INNER);
	watch(outer, quiet[0], EPOLLIN | EPOLLRDHUP, QUIET);
	watch(outer, pair[0], EPOLLIN | EPOLLONESHOT, ONCE);
	CHECK(write(pair[1], "x", 1) == 1 && told(outer) == 1u << ONCE, "once"); /* and no more */
	watch(outer, counter, EPOLLIN | EPOLLET, EDGE);
	watch(outer, gone[0], EPOLLIN, GONE); /* its file stays open by another descriptor */
	int other = dup(gone[0]);
	CHECK(other >= 0 && !close(gone[0]), "dup");
	CHECK(write(line[1], "line", 4) == 4 && write(counter, &count, 8) == 8 && write(gone[1], "g", 1) == 1, "events");

	workload_ready();

	unsigned all = told(outer);
	CHECK(all == (1u << PIPE | 1u << EDGE | 1u << INNER | 1u << GONE), "told %x", all);
	all = told(outer);
	CHECK(all == (1u << PIPE | 1u << INNER | 1u << GONE), "told %x", all); /* the edge has been passed */
	CHECK(told(inner) == 1u << PIPE, "inner");
	CHECK(!epoll_ctl(outer, EPOLL_CTL_MOD, pair[0], &e), "once more");
	all = told(outer);
	CHECK(all == (1u << PIPE | 1u << ONCE | 1u << INNER | 1u << GONE), "told %x", all);
	CHECK(write(quiet[1], "q", 1) == 1 && told(outer) & 1u << QUIET, "quiet");
	CHECK(read(counter, &count, 8) == 8 && count == 3, "count %llu", (unsigned long long)count);
	workload_pass();
}
