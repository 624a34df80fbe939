/*
 * argv[1] MiB of memory of which argv[2] different pages a second are written, in slots of 10 ms that are not made up for
 * when they are missed. How many have been written is in the file "count", as a 64-bit number.
 */
#include "workload.h"
#include <time.h>

#define PAGE 4096
#define SLOT 10000000 /* ns */

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ul + ts.tv_nsec;
}

int main(int argc, char **argv)
{
	size_t len = (size_t)(argc > 1 ? atol(argv[1]) : 64) << 20, pages = len / PAGE, at = 0;
	size_t each = (argc > 2 ? atol(argv[2]) : 1000) / (1000000000 / SLOT);

	workload_init();
	int fd = open("count", O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, PAGE), "count");
	volatile uint64_t *count = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(count != MAP_FAILED && p != MAP_FAILED, "mmap");
	madvise(p, len, MADV_NOHUGEPAGE);
	workload_fill(p, len, 5);
	workload_write("ready", "ready\n");
	for (uint64_t next = now();; next += SLOT) {
		for (size_t i = 0; i < each; i++) {
			/* A prime step: pages come back only when all have been written. */
			at = (at + 7919) % pages;
			p[at * PAGE + 64]++;
		}
		*count += each;
		if (now() < next + SLOT) {
			struct timespec ts = { (next + SLOT) / 1000000000, (next + SLOT) % 1000000000 };
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
		} else {
			next = now() - SLOT;
		}
	}
}
