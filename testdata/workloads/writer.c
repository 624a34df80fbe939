/*
 * Memory that changes all the time: argv[1] tasks write, move, drop, map anew, protect and fork, each over memory of its
 * own, and compare every page with what they know to have written there.
 */
#include "workload.h"

#define PAGE 4096
#define WORDS (PAGE / 8)
#define CHUNKS 48
#define PAGES 64 /* of a chunk */
#define LEN (PAGES * PAGE)

enum kind { ANON, FILED, HUGE, KINDS };

static struct chunk {
	uint64_t *mem;
	uint64_t version[PAGES]; /* 0: never written, or dropped */
	enum kind kind;
} chunks[CHUNKS];

static int file = -1;
static volatile int *stop; /* in shared memory */

static uint64_t seed;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	return seed ^= seed << 17;
}

static uint64_t word(int c, int p, uint64_t version, int i)
{
	return (version << 32 ^ (uint64_t)c << 20 ^ (uint64_t)p << 10 ^ i) * 0x9e3779b97f4a7c15;
}

/* What a page holds that was never written: zeros, or the file. */
static uint64_t fresh(int c, int p, int i)
{
	return chunks[c].kind == FILED ? (uint64_t)p * WORDS + i : 0;
}

static void check(int c, int p)
{
	uint64_t *at = chunks[c].mem + p * WORDS, version = chunks[c].version[p];

	for (int i = 0; i < WORDS; i++) {
		uint64_t want = version ? word(c, p, version, i) : fresh(c, p, i);
		CHECK(at[i] == want, "chunk %d kind %d page %d (%p) word %d: %lx in place of %lx, version %lu", c, chunks[c].kind, p,
		      at, i, at[i], want, version);
	}
}

static void check_all(void)
{
	for (int c = 0; c < CHUNKS; c++)
		for (int p = 0; p < PAGES; p++)
			check(c, p);
}

static void write_page(int c, int p)
{
	uint64_t version = rnd() | 1, *at = chunks[c].mem + p * WORDS;

	version &= 0xffffffff;
	for (int i = 0; i < WORDS; i++)
		at[i] = word(c, p, version, i);
	chunks[c].version[p] = version;
}

static void map_chunk(int c)
{
	struct chunk *k = &chunks[c];

	k->kind = rnd() % KINDS;
	int flags = MAP_PRIVATE | (k->kind == FILED ? 0 : MAP_ANONYMOUS);
	k->mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, flags, k->kind == FILED ? file : -1, 0);
	CHECK(k->mem != MAP_FAILED, "mmap");
	if (k->kind != FILED)
		madvise(k->mem, LEN, k->kind == HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	memset(k->version, 0, sizeof(k->version));
}

static void drop(int c, int p, int n)
{
	CHECK(!madvise((char *)chunks[c].mem + p * PAGE, n * PAGE, MADV_DONTNEED), "madvise");
	memset(chunks[c].version + p, 0, n * sizeof(uint64_t));
}

/* Moves a chunk, in half of the cases over another one, whose place is free then. */
static void move(int c)
{
	struct chunk *k = &chunks[c];
	void *to = mmap(NULL, LEN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(to != MAP_FAILED, "mmap");
	uint64_t *from = k->mem;
	k->mem = mremap(k->mem, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	CHECK(k->mem == to, "mremap");
	if (rnd() % 2)
		return;
	int other = rnd() % CHUNKS;
	if (other != c) {
		void *new = mremap(chunks[other].mem, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, from);
		CHECK(new == from, "mremap");
		chunks[other].mem = new;
	}
}

static void steps(int n)
{
	while (n-- && !*stop) {
		int c = rnd() % CHUNKS, p = rnd() % PAGES;

		switch (rnd() % 64) {
		case 0:
			drop(c, p, 1 + rnd() % (PAGES - p));
			break;
		case 1:
			move(c);
			break;
		case 2:
			if (rnd() % 4)
				break;
			CHECK(!munmap(chunks[c].mem, LEN), "munmap");
			map_chunk(c);
			break;
		case 3:
			CHECK(!mprotect(chunks[c].mem, LEN, rnd() % 2 ? PROT_READ : PROT_NONE), "mprotect");
			usleep(rnd() % 100);
			CHECK(!mprotect(chunks[c].mem, LEN, PROT_READ | PROT_WRITE), "mprotect");
			break;
		case 4 ... 15:
			check(c, p);
			break;
		default:
			write_page(c, p);
		}
	}
}

static void work(void)
{
	while (!*stop) {
		steps(300);
		pid_t child = fork();
		CHECK(child >= 0, "fork");
		if (!child) {
			seed += getpid();
			steps(500);
			check_all();
			_exit(0);
		}
		steps(200);
		int status;
		CHECK(waitpid(child, &status, 0) == child && !status, "child %x", status);
	}
	check_all();
	_exit(0);
}

int main(int argc, char **argv)
{
	int workers = argc > 1 ? atoi(argv[1]) : 2;

	workload_init();
	file = open("mapped", O_CREAT | O_RDWR, 0600);
	uint64_t page[WORDS];
	for (int p = 0; p < PAGES; p++) {
		for (int i = 0; i < WORDS; i++)
			page[i] = p * WORDS + i;
		CHECK(write(file, page, PAGE) == PAGE, "file");
	}
	stop = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(stop != MAP_FAILED, "mmap");
	seed = 88172645463325252;
	for (int c = 0; c < CHUNKS; c++)
		map_chunk(c);
	steps(5000);
	pid_t pids[workers];
	for (int i = 0; i < workers; i++) {
		seed += i;
		if (!(pids[i] = fork()))
			work();
	}
	workload_ready();
	*stop = 1;
	for (int i = 0; i < workers; i++) {
		int status;
		CHECK(waitpid(pids[i], &status, 0) == pids[i] && !status, "task %d: %x", i, status);
	}
	check_all();
	workload_pass();
}
