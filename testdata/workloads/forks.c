/* A flat tree of idle children; argv[1]: how many. */
#include "workload.h"

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 100, st;

	sigset_t set;

	workload_init();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (int i = 0; i < n; i++) {
		pid_t p = fork();
		CHECK(p >= 0, "fork %d", i);
		if (!p) {
			int sig;
			sigwait(&set, &sig);
			_exit(sig == SIGUSR1 ? i % 100 : 101);
		}
	}
	workload_ready();
	kill(0, SIGUSR1);
	int sum = 0, want = 0;
	for (int i = 0; i < n; i++) {
		CHECK(wait(&st) > 0 && WIFEXITED(st) && WEXITSTATUS(st) < 101, "child %d: %x", i, st);
		sum += WEXITSTATUS(st);
		want += i % 100;
	}
	CHECK(sum == want, "sum of exit statuses %d, not %d", sum, want);
	workload_pass();
}
