/*
 * Timers that fire once, again and again: one of setitimer, one of timer_create and one for a single thread. Each has to
 * fire once for each time it was set, whenever the dump comes.
 */
#include "workload.h"
#include <sys/time.h>

static timer_t make(int notify, int signo)
{
	struct sigevent ev = { .sigev_notify = notify, .sigev_signo = signo };
	timer_t t;

	ev._sigev_un._tid = getpid();
	CHECK(!timer_create(CLOCK_MONOTONIC, &ev, &t), "timer_create");
	return t;
}

int main(void)
{
	struct timespec patience = { 5, 0 }, none = { 0, 0 };
	struct itimerval once = { .it_value.tv_usec = 9000 };
	struct itimerspec mine = { .it_value.tv_nsec = 7000000 }, threads = { .it_value.tv_nsec = 11000000 };
	timer_t a, b;
	sigset_t set;

	workload_init();
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigaddset(&set, SIGRTMIN);
	sigaddset(&set, SIGRTMIN + 1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	a = make(SIGEV_SIGNAL, SIGRTMIN);
	b = make(SIGEV_THREAD_ID, SIGRTMIN + 1);
	for (unsigned long round = 0; faccessat(workload_dir, "go", F_OK, 0); round++) {
		int seen = 0;

		CHECK(!setitimer(ITIMER_REAL, &once, NULL) && !timer_settime(a, 0, &mine, NULL) && !timer_settime(b, 0, &threads, NULL), "set");
		for (int i = 0; i < 3; i++) {
			int sig = sigtimedwait(&set, NULL, &patience), bit = sig == SIGALRM ? 1 : sig == SIGRTMIN ? 2 : 4;
			if (sig < 0 && errno == EINTR) {
				i--;
				continue;
			}
			CHECK(sig > 0, "round %lu: a timer has not fired, only those of %d", round, seen);
			CHECK(!(seen & bit), "round %lu: signal %d came twice", round, sig);
			seen |= bit;
		}
		CHECK(sigtimedwait(&set, NULL, &none) < 0, "round %lu: a timer has fired twice", round);
		if (!round)
			workload_write("ready", "\n");
	}
	workload_pass();
}
