/*
 * Shared memory that is written in every way: by this task, by children that end at once, and by write(2) past all mappings.
 * Each page is compared with what is known to have been written there. With an argument there is no SysV segment, which criu
 * restores in namespaces only.
 */
#include "workload.h"
#include <sys/shm.h>

#define PAGE 4096
#define WORDS (PAGE / 8)
#define PAGES 1024

enum { ANON, MEMFD, SYSV, OBJECTS };

static uint64_t *object[OBJECTS];
static uint64_t version[OBJECTS][PAGES];

static uint64_t word(int o, int p, uint64_t v, int i)
{
	return v ? (v << 32 ^ (uint64_t)o << 24 ^ (uint64_t)p << 10 ^ i) * 0x9e3779b97f4a7c15 : 0;
}

static void fill(uint64_t *at, int o, int p, uint64_t v)
{
	for (int i = 0; i < WORDS; i++)
		at[i] = word(o, p, v, i);
}

int main(int argc, char **argv)
{
	int objects = argc > 1 ? SYSV : OBJECTS;
	uint64_t seed = 88172645463325252, page[WORDS];
	char go[] = "go";

	workload_init();
	int fd = syscall(SYS_memfd_create, "shared", 0), id = shmget(IPC_PRIVATE, PAGES * PAGE, IPC_CREAT | 0600);
	CHECK(fd >= 0 && !ftruncate(fd, PAGES * PAGE) && id >= 0, "make");
	object[ANON] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	object[MEMFD] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (objects > SYSV)
		object[SYSV] = shmat(id, NULL, 0);
	for (int o = 0; o < objects; o++)
		CHECK(object[o] != (void *)-1, "map %d", o);
	CHECK(!shmctl(id, IPC_RMID, NULL), "remove");
	for (int o = 0; o < objects; o++)
		for (int p = 0; p < PAGES * 3 / 4; p++)
			fill(object[o] + p * WORDS, o, p, version[o][p] = 1);
	workload_write("ready", "");

	for (uint64_t v = 2; faccessat(workload_dir, go, F_OK, 0); v++) {
		seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
		/* Few pages, so that most are as they were in the set before. */
		int o = seed % objects, p = (seed >> 8) % 64 * 16, how = seed >> 16 & 3;
		uint64_t next = (seed >> 20 & 7) ? v : 0; /* zeros now and then */

		if (how == 0) {
			fill(object[o] + p * WORDS, o, p, next);
		} else if (how == 1 && o == MEMFD) {
			fill(page, o, p, next);
			CHECK(pwrite(fd, page, PAGE, (off_t)p * PAGE) == PAGE, "pwrite");
		} else {
			int st;
			pid_t child = fork();
			CHECK(child >= 0, "fork");
			if (!child) {
				fill(object[o] + p * WORDS, o, p, next);
				_exit(0);
			}
			CHECK(waitpid(child, &st, 0) == child && !st, "child %#x", st);
		}
		version[o][p] = next;
	}
	for (int o = 0; o < objects; o++)
		for (int p = 0; p < PAGES; p++)
			for (int i = 0; i < WORDS; i++)
				CHECK(object[o][p * WORDS + i] == word(o, p, version[o][p], i), "object %d page %d word %d", o, p, i);
	workload_pass();
}
