/*
 * Files of /proc of processes that have ended. With "thread" those of a thread that has ended, whose process lives; with a
 * pid those of a process that is none of ours.
 */
#include "workload.h"
#include <pthread.h>

static int fds[8], n;

static void keep(const char *fmt, int pid)
{
	char path[64];

	snprintf(path, sizeof(path), fmt, pid, pid);
	fds[n] = open(path, O_RDONLY);
	CHECK(fds[n] >= 0, "%s", path);
	n++;
}

static void *thread(void *arg)
{
	keep("/proc/thread-self/stat", 0);
	keep("/proc/self/task/%d", syscall(SYS_gettid));
	return arg;
}

int main(int argc, char **argv)
{
	char buf[64];
	pthread_t t;

	workload_init();
	if (argc == 1) {
		pid_t pid = fork();
		if (!pid)
			_exit(pause());
		keep("/proc/%d/status", pid);
		keep("/proc/%d/task/%d/comm", pid);
		keep("/proc/%d/task/%d/comm", pid);
		CHECK(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid, "child");
	} else if (!strcmp(argv[1], "thread")) {
		CHECK(!pthread_create(&t, NULL, thread, NULL) && !pthread_join(t, NULL), "thread");
	} else {
		keep("/proc/%d/stat", atoi(argv[1]));
	}
	workload_ready();
	for (int i = 0; i < n; i++) {
		errno = 0;
		ssize_t got = read(fds[i], buf, sizeof(buf));
		CHECK(got < 0 && (errno == ESRCH || errno == EISDIR), "descriptor %d tells %zd bytes", fds[i], got);
	}
	workload_pass();
}
