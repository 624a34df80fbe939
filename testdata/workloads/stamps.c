/*
 * A program that notices when it stands still: argv[1] MiB of memory, in huge pages if argv[2] is "huge", written page
 * after page with a time stamp each. From the file "measure" on it takes the largest gap between two stamps; whenever it
 * finds the file "report" it takes that away, writes the gap to the file "gap", and begins anew. The file "fork" has how
 * long a fork() of the same memory takes, which comes first, and is there when the child has ended: who stops the program
 * earlier finds it waiting for that. Both are in nanoseconds.
 */
#include "workload.h"

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void report(const char *name, uint64_t ns)
{
	char text[32];

	snprintf(text, sizeof(text), "%lu", ns);
	workload_write(name, text);
}

static int there(const char *name)
{
	return !faccessat(workload_dir, name, F_OK, 0);
}

static void measure_fork(void)
{
	uint64_t began = now();
	pid_t child = fork();
	uint64_t took = now() - began;

	CHECK(child >= 0, "fork");
	if (!child)
		_exit(0);
	CHECK(waitpid(child, NULL, 0) == child, "wait");
	report("fork", took);
}

int main(int argc, char **argv)
{
	size_t len = (size_t)(argc > 1 ? atol(argv[1]) : 64) << 20;
	int huge = argc > 2 && !strcmp(argv[2], "huge");

	workload_init();
	/* Huge pages want memory that begins at a multiple of theirs. */
	char *p = mmap(NULL, len + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	p = (char *)(((uintptr_t)p + (2 << 20) - 1) & -(2 << 20));
	madvise(p, len, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	workload_fill(p, len, 5);
	workload_write("ready", "");
	while (!there("measure"))
		usleep(1000);
	measure_fork();
	uint64_t last = now(), gap = 0;
	for (size_t at = 0, n = 0;; at = (at + 4096) % len) {
		uint64_t stamp = now();

		if (stamp - last > gap)
			gap = stamp - last;
		last = stamp;
		*(uint64_t *)(p + at) = stamp;
		if (!(++n % 4096) && !unlinkat(workload_dir, "report", 0)) {
			report("gap", gap);
			gap = 0;
			last = now();
		}
	}
}
