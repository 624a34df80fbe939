/*
 * Shared anonymous memory of which tasks have mapped parts only, after munmap and mremap. With an argument what is not
 * mapped is looked at too, which takes memory of the right size.
 */
#include "workload.h"

#define PAGE 4096ul

static char *shared(size_t pages)
{
	char *p = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED, "mmap");
	workload_fill(p, pages * PAGE, pages);
	return p;
}

static char *longer(char *p, size_t from, size_t to)
{
	p = mremap(p, from * PAGE, to * PAGE, MREMAP_MAYMOVE);
	CHECK(p != MAP_FAILED, "mremap");
	return p;
}

static volatile sig_atomic_t beyond;

static void end_of_memory(int sig, siginfo_t *info, void *context)
{
	(void)sig, (void)context;
	beyond++;
	mmap((void *)((uint64_t)info->si_addr & -PAGE), PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void ends(char *p)
{
	int before = beyond;

	(void)*(volatile char *)p;
	CHECK(beyond == before + 1, "there is something beyond the end");
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_sigaction = end_of_memory, .sa_flags = SA_SIGINFO };
	int fine = argc > 1, st;

	(void)argv;
	workload_init();
	sigaction(SIGBUS, &act, NULL);
	char *tail = shared(8), *head = shared(9), *child_has = shared(10), *shrunk = shared(300), *grown = shared(2), *never = shared(5);
	CHECK(!munmap(tail + 4 * PAGE, 4 * PAGE) && !munmap(head, 6 * PAGE), "munmap");
	shrunk = mremap(shrunk, 300 * PAGE, 100 * PAGE, 0);
	if (fine) /* criu's idea of the memory is the mapping */
		grown = longer(grown, 2, 4);
	CHECK(!madvise(never + 4 * PAGE, PAGE, MADV_REMOVE) && !munmap(never + PAGE, 4 * PAGE), "a hole at the end");

	pid_t child = fork();
	if (!child) {
		CHECK(!munmap(child_has, 2 * PAGE) && !munmap(child_has + 5 * PAGE, 5 * PAGE), "munmap");
		while (*(volatile uint64_t *)tail != 4242)
			usleep(1000);
		child_has += 2 * PAGE;
		if (fine)
			child_has = longer(child_has, 3, 8);
		_exit(workload_verify(child_has, PAGE, 10 + 2 * PAGE / 8) ? 33 : 1);
	}
	CHECK(!munmap(child_has + 4 * PAGE, 6 * PAGE), "munmap");
	workload_ready();

	CHECK(workload_verify(tail, 4 * PAGE, 8) && workload_verify(head + 6 * PAGE, 3 * PAGE, 9 + 6 * PAGE / 8), "what is mapped");
	CHECK(workload_verify(child_has, 4 * PAGE, 10) && workload_verify(shrunk, 100 * PAGE, 300), "what is mapped");
	CHECK(workload_verify(grown, 2 * PAGE, 2) && workload_verify(never, PAGE, 5), "what is mapped");
	if (fine) {
		tail = longer(tail, 4, 9);
		CHECK(workload_verify(tail, 8 * PAGE, 8), "the tail");
		ends(tail + 8 * PAGE);
		shrunk = longer(shrunk, 100, 300);
		CHECK(workload_verify(shrunk, 300 * PAGE, 300), "what was cut off");
		child_has = longer(child_has, 4, 10);
		CHECK(workload_verify(child_has, 10 * PAGE, 10), "what nobody had");
		ends(grown + 2 * PAGE);
		never = longer(never, 1, 5);
		CHECK(workload_verify(never, 4 * PAGE, 5) && !never[4 * PAGE], "the hole");
	}
	*(volatile uint64_t *)tail = 4242;
	CHECK(waitpid(child, &st, 0) == child && WEXITSTATUS(st) == 33, "child: %x", st);
	workload_pass();
}
