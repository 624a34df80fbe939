/* An orphan in the session and group of a leader that is gone, adopted by a subreaper. */
#include "workload.h"
#include <sys/prctl.h>

static void dead_leader(void)
{
	setsid();
	if (!fork()) {
		pid_t sid = getsid(0);
		workload_wait();
		_exit(getsid(0) == sid ? 23 : 3);
	}
	_exit(5);
}

int main(void)
{
	int st;

	workload_init();
	CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1), "subreaper");
	pid_t gone = fork();
	if (!gone)
		dead_leader();
	CHECK(waitpid(gone, &st, 0) == gone && WEXITSTATUS(st) == 5, "leader %x", st);
	workload_ready();

	CHECK(wait(&st) > 0 && WIFEXITED(st) && WEXITSTATUS(st) == 23, "orphan %x", st);
	workload_pass();
}
