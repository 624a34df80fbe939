/* Handlers, pending signals with their data, alternate stack, mask, interval and POSIX timers. */
#include "workload.h"
#include <sys/time.h>

static volatile int order[8], values[8], got;

static void on_rt(int sig, siginfo_t *si, void *uc)
{
	(void)uc;
	if (got < 8) {
		order[got] = sig;
		values[got++] = si->si_value.sival_int;
	}
}

static void on_usr1(int sig)
{
	(void)sig;
}

int main(void)
{
	struct sigaction sa = { .sa_sigaction = on_rt, .sa_flags = SA_SIGINFO | SA_RESTART }, old;
	sigset_t mask, now;
	timer_t t0, t1, t2;
	struct itimerspec its = { { 1000, 0 }, { 5000, 0 } }, left;
	struct itimerval itv = { { 7000, 0 }, { 7000, 0 } }, got_itv;

	workload_init();
	sigfillset(&sa.sa_mask);
	for (int s = SIGRTMIN + 1; s < SIGRTMIN + 4; s++)
		CHECK(!sigaction(s, &sa, NULL), "sigaction");
	struct sigaction usr1 = { .sa_handler = on_usr1, .sa_flags = SA_RESETHAND | SA_ONSTACK };
	CHECK(!sigaction(SIGUSR1, &usr1, NULL), "sigaction");
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&mask);
	for (int s = SIGRTMIN + 1; s < SIGRTMIN + 4; s++)
		sigaddset(&mask, s);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	for (int i = 0; i < 3; i++) {
		union sigval v = { .sival_int = 100 + i };
		CHECK(!sigqueue(getpid(), SIGRTMIN + 2, v), "sigqueue");
	}
	CHECK(!syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN + 1), "tgkill");
	struct sigevent ev = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3 };
	CHECK(!timer_create(CLOCK_MONOTONIC, &ev, &t0), "timer");
	CHECK(!timer_create(CLOCK_REALTIME, &ev, &t1), "timer");
	CHECK(!timer_delete(t0), "timer");
	CHECK(!timer_create(CLOCK_BOOTTIME, &ev, &t2), "timer");
	CHECK(!timer_settime(t1, 0, &its, NULL), "timer");
	CHECK(!setitimer(ITIMER_REAL, &itv, NULL), "itimer");
	void *stack = malloc(65536);
	stack_t ss = { .ss_sp = stack, .ss_size = 65536 }, oss;
	CHECK(!sigaltstack(&ss, NULL), "altstack");

	workload_ready();

	CHECK(!sigaction(SIGUSR1, NULL, &old) && old.sa_handler == on_usr1, "handler");
	CHECK((old.sa_flags & (SA_RESETHAND | SA_ONSTACK)) == (SA_RESETHAND | (int)SA_ONSTACK), "flags");
	CHECK(!sigaction(SIGPIPE, NULL, &old) && old.sa_handler == SIG_IGN, "ignored signal");
	sigprocmask(SIG_SETMASK, NULL, &now);
	CHECK(!memcmp(&now, &mask, 8), "mask");
	CHECK(!timer_gettime(t1, &left) && left.it_interval.tv_sec == 1000, "timer interval");
	CHECK(left.it_value.tv_sec <= 5000 && left.it_value.tv_sec > 4000, "timer left %ld", (long)left.it_value.tv_sec);
	CHECK(!timer_gettime(t2, &left) && !left.it_value.tv_sec, "unarmed timer");
	CHECK(!getitimer(ITIMER_REAL, &got_itv) && got_itv.it_value.tv_sec > 6000, "itimer");
	CHECK(!sigaltstack(NULL, &oss) && oss.ss_sp == stack && oss.ss_size == 65536, "altstack");
	sigemptyset(&mask);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	CHECK(got == 4, "%d pending signals", got);
	int seen = 0;
	for (int i = 0; i < 4; i++)
		if (order[i] == SIGRTMIN + 2)
			CHECK(values[i] == 100 + seen++, "queue order");
	CHECK(seen == 3, "queued signals");
	workload_pass();
}
