/* Descriptors of processes: oneself, a child, a zombie, one that was reaped (twice) and another that was. */
#include "workload.h"
#include <poll.h>
#include <sys/syscall.h>

static int pidfd(pid_t pid)
{
	int fd = syscall(SYS_pidfd_open, pid, O_NONBLOCK);

	CHECK(fd >= 0, "pidfd_open");
	return fd;
}

static pid_t ending(int status)
{
	pid_t pid = fork();

	if (!pid)
		_exit(status);
	return pid;
}

static ino_t inode(int fd)
{
	struct stat st;

	CHECK(!fstat(fd, &st), "fstat");
	return st.st_ino;
}

static int ended(int fd)
{
	struct pollfd p = { fd, POLLIN, 0 };

	return poll(&p, 1, 0) == 1 && syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) && errno == ESRCH;
}

int main(void)
{
	siginfo_t info;

	workload_init();
	pid_t child = fork();
	if (!child)
		for (;;)
			pause();
	pid_t zombie = ending(7), one = ending(1), other = ending(2);
	int self = pidfd(getpid()), living = pidfd(child), undead = pidfd(zombie), dead[3] = { pidfd(one), pidfd(one), pidfd(other) };
	CHECK(!waitid(P_PID, zombie, &info, WEXITED | WNOWAIT), "waitid");
	CHECK(waitpid(one, NULL, 0) == one && waitpid(other, NULL, 0) == other, "waitpid");
	int told_apart = inode(dead[0]) != inode(dead[2]); /* Linux 6.9 */
	workload_ready();

	CHECK(fcntl(living, F_GETFL) & O_NONBLOCK && fcntl(living, F_GETFD) & FD_CLOEXEC, "flags");
	CHECK(!syscall(SYS_pidfd_send_signal, self, 0, NULL, 0), "self");
	CHECK(!syscall(SYS_pidfd_send_signal, living, SIGTERM, NULL, 0), "child");
	CHECK(poll(&(struct pollfd){ living, POLLIN, 0 }, 1, -1) == 1, "poll");
	CHECK(!waitid(P_PIDFD, living, &info, WEXITED) && info.si_pid == child && info.si_status == SIGTERM, "child's end");
	CHECK(!waitid(P_PIDFD, undead, &info, WEXITED) && info.si_pid == zombie && info.si_status == 7, "zombie");
	CHECK(ended(dead[0]) && ended(dead[1]) && ended(dead[2]), "those reaped");
	CHECK(!told_apart || (inode(dead[0]) == inode(dead[1]) && inode(dead[0]) != inode(dead[2])), "which is which");
	workload_pass();
}
