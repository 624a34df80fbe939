/*
 * Everything that a task can do to memory whose pages have yet to come: touch it at random from several threads, fork,
 * move it, empty it, unmap it, grow and shrink it. argv[1] MiB, argv[2] rounds.
 */
#include "workload.h"
#include <pthread.h>

#define PAGE 4096ul
#define THREADS 4

static char *mem;
static size_t pages;
static int passed = 1;

static int page_is(char *at, size_t page)
{
	return workload_verify(at, PAGE, page * 1000003);
}

static int page_is_zero(char *at)
{
	for (size_t i = 0; i < PAGE; i++)
		if (at[i])
			return 0;
	return 1;
}

static uint64_t next(uint64_t *state)
{
	return *state = workload_pattern(*state);
}

/* Touches pages of the first half, which stays where it is. */
static void *toucher(void *arg)
{
	uint64_t state = (uintptr_t)arg;

	for (int i = 0; i < 2000; i++) {
		size_t page = next(&state) % (pages / 2);
		if (!page_is(mem + page * PAGE, page))
			__atomic_store_n(&passed, 0, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

/* A child checks some pages and then goes; it has all its parent had at the fork. */
static pid_t fork_checker(uint64_t seed)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	for (int i = 0; i < 300; i++) {
		size_t page = next(&seed) % (pages / 2);
		if (!page_is(mem + page * PAGE, page))
			_exit(1);
	}
	_exit(0);
}

/* The second half is cut into pieces, each of which meets one fate. */
static void fate(size_t i, size_t first, size_t n)
{
	char *at = mem + first * PAGE;

	switch (i % 5) {
	case 0: { /* moved */
		char *to = mmap(NULL, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(to != MAP_FAILED, "mmap");
		CHECK(mremap(at, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
		for (size_t k = 0; k < n; k++)
			CHECK(page_is(to + k * PAGE, first + k), "moved page %zu", first + k);
		CHECK(mremap(to, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at, "move back");
		for (size_t k = 0; k < n; k++)
			CHECK(page_is(at + k * PAGE, first + k), "page %zu, there and back", first + k);
		break;
	}
	case 1: /* emptied in the middle */
		CHECK(!madvise(at + n / 4 * PAGE, n / 2 * PAGE, MADV_DONTNEED), "madvise");
		for (size_t k = 0; k < n; k++)
			if (k >= n / 4 && k < n / 4 + n / 2)
				CHECK(page_is_zero(at + k * PAGE), "emptied page %zu", first + k);
			else
				CHECK(page_is(at + k * PAGE, first + k), "page %zu beside emptied ones", first + k);
		break;
	case 2: /* unmapped, and mapped anew */
		CHECK(!munmap(at, n * PAGE), "munmap");
		CHECK(mmap(at, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at, "mmap");
		for (size_t k = 0; k < n; k++)
			CHECK(page_is_zero(at + k * PAGE), "new page %zu", first + k);
		break;
	case 3: /* shrunk */
		CHECK(mremap(at, n * PAGE, n / 2 * PAGE, 0) == at, "shrink");
		for (size_t k = 0; k < n / 2; k++)
			CHECK(page_is(at + k * PAGE, first + k), "page %zu of what was shrunk", first + k);
		break;
	default: /* written before it is read */
		for (size_t k = 0; k < n; k += 2)
			memset(at + k * PAGE, 'w', PAGE);
		for (size_t k = 1; k < n; k += 2)
			CHECK(page_is(at + k * PAGE, first + k), "page %zu between written ones", first + k);
	}
}

int main(int argc, char **argv)
{
	size_t len = (size_t)(argc > 1 ? atol(argv[1]) : 32) << 20;
	const size_t piece = 64;

	workload_init();
	pages = len / PAGE;
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(mem != MAP_FAILED, "mmap");
	for (size_t i = 0; i < pages; i++)
		workload_fill(mem + i * PAGE, PAGE, i * 1000003);
	workload_ready();

	pthread_t threads[THREADS];
	pid_t children[16];
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&threads[i], NULL, toucher, (void *)(i + 1)), "pthread_create");
	for (size_t i = 0; i < 16; i++) {
		children[i] = fork_checker(i + 100);
		for (size_t k = 0; k < 4; k++)
			fate(i * 4 + k, pages / 2 + (i * 4 + k) * piece, piece);
	}
	for (int i = 0; i < 16; i++) {
		int status;
		CHECK(waitpid(children[i], &status, 0) == children[i] && !status, "child %d: %x", i, status);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	CHECK(passed, "a page the threads touched was wrong");
	for (size_t i = 0; i < pages / 2; i++)
		CHECK(page_is(mem + i * PAGE, i), "page %zu", i);
	for (size_t i = pages / 2 + 64 * piece; i < pages; i++)
		CHECK(page_is(mem + i * PAGE, i), "page %zu", i);
	workload_pass();
}
