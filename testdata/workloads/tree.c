/* Sessions, process groups, zombies, a stopped child. */
#include "workload.h"

static pid_t spawn(void (*body)(void))
{
	pid_t p = fork();

	CHECK(p >= 0, "fork");
	if (!p) {
		body();
		_exit(0);
	}
	return p;
}

static void idle(void)
{
	workload_wait();
}

static void own_session(void)
{
	setsid();
	if (!fork()) {
		setpgid(0, 0);
		workload_wait();
		_exit(getsid(0) == getppid() && getpgid(0) == getpid() ? 21 : 1);
	}
	workload_wait();
	int st;
	wait(&st);
	_exit(WIFEXITED(st) && WEXITSTATUS(st) == 21 && getsid(0) == getpid() ? 22 : 2);
}

static void exits(void)
{
	_exit(42);
}

static void killed(void)
{
	raise(SIGTERM);
}

int main(void)
{
	int st;

	workload_init();
	pid_t zombie = spawn(exits), dead = spawn(killed);
	pid_t leader = spawn(own_session);
	pid_t stopped = spawn(idle);
	kill(stopped, SIGSTOP);
	CHECK(waitpid(stopped, &st, WUNTRACED) == stopped && WIFSTOPPED(st), "stop");
	siginfo_t si;
	CHECK(!waitid(P_PID, zombie, &si, WEXITED | WNOWAIT), "zombie");
	CHECK(!waitid(P_PID, dead, &si, WEXITED | WNOWAIT), "zombie");
	workload_ready();

	CHECK(waitpid(zombie, &st, 0) == zombie && WIFEXITED(st) && WEXITSTATUS(st) == 42, "zombie %x", st);
	CHECK(waitpid(dead, &st, 0) == dead && WIFSIGNALED(st) && WTERMSIG(st) == SIGTERM, "killed %x", st);
	kill(stopped, SIGCONT);
	CHECK(waitpid(stopped, &st, 0) == stopped && WIFEXITED(st), "stopped %x", st);
	CHECK(waitpid(leader, &st, 0) == leader && WEXITSTATUS(st) == 22, "session %x", st);
	workload_pass();
}
