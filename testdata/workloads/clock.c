/* Functions of the vdso: they tell what the system calls tell, wherever the vdso lies and whichever kernel it is of. */
#include "workload.h"
#include <sched.h>
#include <sys/time.h>

static double seconds(struct timespec t) { return t.tv_sec + t.tv_nsec / 1e9; }

static void check(void)
{
	static const clockid_t clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE };
	struct timespec a, b, r;
	struct timeval tv;
	unsigned cpu;

	for (unsigned i = 0; i < sizeof(clocks) / sizeof(clocks[0]); i++) {
		CHECK(!clock_gettime(clocks[i], &a), "clock_gettime");
		CHECK(!syscall(SYS_clock_gettime, clocks[i], &b), "system call");
		CHECK(seconds(b) - seconds(a) < 1 && seconds(b) - seconds(a) > -1, "clock %d", (int)clocks[i]);
	}
	CHECK(!gettimeofday(&tv, NULL), "gettimeofday");
	CHECK(!syscall(SYS_clock_gettime, CLOCK_REALTIME, &b), "system call");
	CHECK(tv.tv_sec <= b.tv_sec && tv.tv_sec >= b.tv_sec - 1, "gettimeofday");
	CHECK(time(NULL) >= b.tv_sec - 1 && time(NULL) <= b.tv_sec + 1, "time");
	CHECK(!clock_getres(CLOCK_MONOTONIC, &r) && r.tv_sec == 0, "clock_getres");
	CHECK(!getcpu(&cpu, NULL) && cpu < 1 << 16, "getcpu");
}

int main(void)
{
	workload_init();
	check();
	workload_ready();
	for (int i = 0; i < 1000; i++)
		check();
	workload_pass();
}
