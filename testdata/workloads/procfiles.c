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

/* A link of /proc says which id of the caller is in use there: that of another pid namespace, perhaps. */
static int called(const char *link)
{
	char to[64] = "";

	CHECK(readlink(link, to, sizeof(to) - 1) > 0, "%s", link);
	return atoi(strrchr(to, '/') ? strrchr(to, '/') + 1 : to);
}

static void *thread(void *arg)
{
	keep("/proc/thread-self/stat", 0);
	keep("/proc/self/task/%d", called("/proc/thread-self"));
	return arg;
}

int main(int argc, char **argv)
{
	char buf[64];
	pthread_t t;

	workload_init();
	if (argc == 1) {
		int id, ids[2];
		CHECK(!pipe(ids), "pipe");
		pid_t pid = fork();
		if (!pid) {
			id = called("/proc/self");
			_exit(write(ids[1], &id, sizeof(id)) != sizeof(id) || pause());
		}
		CHECK(read(ids[0], &id, sizeof(id)) == sizeof(id) && !close(ids[0]) && !close(ids[1]), "id");
		keep("/proc/%d/status", id);
		keep("/proc/%d/task/%d/comm", id);
		keep("/proc/%d/task/%d/comm", id);
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
