/* Computes and makes system calls until its input ends, and exits with 0 if it has found nothing wrong. */
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	sigset_t own, now;
	struct pollfd in = { .fd = 0, .events = POLLIN };

	sigemptyset(&own);
	sigaddset(&own, SIGUSR2);
	sigprocmask(SIG_SETMASK, &own, NULL);
	prctl(PR_SET_NAME, "spinning");
	for (;;) {
		volatile double x = 1.0;
		uint64_t h = 14695981039346656037ull;

		for (int i = 0; i < 20000; i++) {
			h = (h ^ i) * 1099511628211ull;
			x = x * 1.0000001 + 0.5;
		}
		if (h != 533740813127085253ull || x < 10000.0)
			return 2;
		if (syscall(SYS_getpid) != getpid())
			return 3;
		sigprocmask(SIG_SETMASK, NULL, &now);
		for (int s = 1; s < 32; s++)
			if (sigismember(&now, s) != (s == SIGUSR2))
				return 4;
		if (poll(&in, 1, 0) < 0)
			return 5;
		if (in.revents & POLLHUP)
			return 0;
	}
}
