/*
 * Memory that is written all the time: argv[1] MiB by each of argv[2] threads, page after page, round after round. Every
 * page holds the number of the round that wrote it last, so a thread finds out when it comes by whether its memory is of
 * one instant: a page that was copied later than the thread's own registers is a round ahead of it. Part of the memory is
 * what a fork does not hand on, or what cannot be copied on write.
 *
 * It also looks for children it does not know, which must never be there to be waited for.
 */
#include "workload.h"
#include <pthread.h>
#include <stdatomic.h>

#define PAGE 4096
#define SMALL (64 * PAGE)
#define HUGE (2 << 20)

struct part {
	volatile uint64_t *mem;
	size_t len;
	const char *name;
};

struct writer {
	pthread_t thread;
	struct part parts[7];
	int nparts;
	atomic_ulong rounds;
};

static atomic_int stopping;

static void add(struct writer *w, const char *name, size_t len, int flags, int fd, int advice)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, fd, 0);

	if (p == MAP_FAILED && flags & MAP_HUGETLB)
		return; /* the machine has none set aside */
	CHECK(p != MAP_FAILED, "%s", name);
	CHECK(!advice || !madvise(p, len, advice), "%s", name);
	w->parts[w->nparts++] = (struct part){ p, len, name };
}

static void *run(void *arg)
{
	struct writer *w = arg;

	for (uint64_t round = 1; !stopping; round++) {
		for (int i = 0; i < w->nparts; i++) {
			struct part *p = &w->parts[i];

			for (size_t at = 0; at < p->len / 8; at += PAGE / 8) {
				uint64_t got = p->mem[at];

				CHECK(got == round - 1, "%s: page %zu is of round %lu in round %lu", p->name, at / 512, got, round);
				p->mem[at] = round;
			}
		}
		w->rounds = round;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	size_t mib = argc > 1 ? atol(argv[1]) : 16;
	int n = argc > 2 ? atoi(argv[2]) : 1;
	struct writer *writers = calloc(n, sizeof(*writers));

	workload_init();
	int file = open("file", O_CREAT | O_RDWR, 0600);
	CHECK(file >= 0 && !ftruncate(file, SMALL), "file");
	for (int i = 0; i < n; i++) {
		struct writer *w = &writers[i];

		add(w, "private", mib << 20, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		add(w, "shared", SMALL, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		add(w, "not forked", SMALL, MAP_PRIVATE | MAP_ANONYMOUS, -1, MADV_DONTFORK);
		add(w, "wiped on fork", SMALL, MAP_PRIVATE | MAP_ANONYMOUS, -1, MADV_WIPEONFORK);
		add(w, "file", SMALL, MAP_PRIVATE, file, 0);
		add(w, "not forked file", SMALL, MAP_PRIVATE, file, MADV_DONTFORK);
		if (!i)
			add(w, "huge", HUGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	}
	for (int i = 0; i < n; i++)
		CHECK(!pthread_create(&writers[i].thread, NULL, run, &writers[i]), "thread");
	for (int i = 0; i < n; i++)
		while (!writers[i].rounds)
			usleep(1000);
	workload_write("ready", "");
	for (struct timespec ts = { 0, 1000 * 1000 }; faccessat(workload_dir, "go", F_OK, 0); nanosleep(&ts, NULL)) {
		pid_t stranger = waitpid(-1, NULL, WNOHANG);
		CHECK(stranger == -1 && errno == ECHILD, "a child %d", stranger);
	}
	stopping = 1;
	for (int i = 0; i < n; i++)
		pthread_join(writers[i].thread, NULL);
	CHECK(waitpid(-1, NULL, WNOHANG | __WALL) == -1 && errno == ECHILD, "a child is left");
	workload_pass();
}
