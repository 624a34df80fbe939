/* A timer that repeats, and whose signal has come but has not been taken: it goes on when that is. */
#include "workload.h"
#include <sys/time.h>

int main(void)
{
	struct itimerval every = { .it_interval.tv_usec = 5000, .it_value.tv_usec = 1000 }, left;
	struct timespec patience = { 30, 0 };
	sigset_t set, pending;

	workload_init();
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	CHECK(!setitimer(ITIMER_REAL, &every, NULL), "set");
	do
		CHECK(!sigpending(&pending), "pending");
	while (!sigismember(&pending, SIGALRM));

	workload_ready();

	for (int i = 0; i < 4; i++) {
		int sig;

		while ((sig = sigtimedwait(&set, NULL, &patience)) < 0 && errno == EINTR)
			;
		CHECK(sig == SIGALRM, "tick %d", i);
	}
	CHECK(!getitimer(ITIMER_REAL, &left) && left.it_interval.tv_usec == 5000, "interval %ld", (long)left.it_interval.tv_usec);
	workload_pass();
}
