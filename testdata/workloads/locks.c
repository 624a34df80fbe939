/* Locks of every kind, each checked by what others may do: flock inherited by a child, POSIX, OFD, leases, one breaking. */
#include "workload.h"
#include <sys/file.h>

static int made(const char *name, int flags)
{
	int fd = open(name, flags | O_CREAT, 0644);

	CHECK(fd >= 0, "%s", name);
	return fd;
}

static int lock(int fd, int cmd, short type, off_t start, off_t len)
{
	struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };

	return fcntl(fd, cmd, &l);
}

/* in_child says whether a new process, with files of its own, gets through with something. */
#define in_child(expr)                                                   \
	({                                                               \
		int st_;                                                 \
		pid_t pid_ = fork();                                     \
		if (!pid_)                                               \
			_exit(!(expr));                                  \
		CHECK(waitpid(pid_, &st_, 0) == pid_, "waitpid");        \
		st_ == 0;                                                \
	})

static volatile sig_atomic_t breaks;

static void on_break(int sig)
{
	breaks++;
}

int main(void)
{
	workload_init();
	signal(SIGUSR1, on_break);
	int whole = made("whole", O_RDWR), shared = made("shared", O_RDWR), posix = made("posix", O_RDWR), ofd = made("ofd", O_RDWR);
	CHECK(!flock(whole, LOCK_EX) && !flock(shared, LOCK_SH), "flock");
	CHECK(!lock(posix, F_SETLK, F_WRLCK, 10, 20) && !lock(posix, F_SETLK, F_RDLCK, 100, 0), "posix");
	CHECK(!lock(ofd, F_OFD_SETLK, F_WRLCK, 5, 5), "ofd");
	int other = dup(whole);

	close(made("lease", O_RDWR));
	close(made("breaking", O_RDWR));
	int lease = made("lease", O_RDONLY), breaking = made("breaking", O_RDWR);
	CHECK(!fcntl(lease, F_SETLEASE, F_RDLCK) && !fcntl(breaking, F_SETLEASE, F_WRLCK), "lease");
	CHECK(!fcntl(lease, F_SETSIG, SIGUSR1) && !fcntl(breaking, F_SETSIG, SIGUSR1), "signal");
	CHECK(open("breaking", O_RDONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK && breaks == 1, "break: %d", breaks);

	int go[2];
	CHECK(!pipe(go), "pipe");
	pid_t child = fork();
	if (!child) { /* keeps the inherited lock */
		char c;
		close(go[1]);
		_exit(read(go[0], &c, 1) != 1);
	}
	workload_ready();

	CHECK(in_child(flock(made("whole", O_RDWR), LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK), "exclusive flock");
	CHECK(in_child(!flock(made("shared", O_RDWR), LOCK_SH | LOCK_NB)), "shared flock with another");
	CHECK(in_child(flock(made("shared", O_RDWR), LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK), "shared flock");
	CHECK(in_child(lock(posix, F_SETLK, F_RDLCK, 29, 1) && !lock(posix, F_SETLK, F_WRLCK, 30, 10)), "posix write lock");
	CHECK(in_child(!lock(posix, F_SETLK, F_RDLCK, 100, 0) && lock(posix, F_SETLK, F_WRLCK, 1000, 1)), "posix read lock");
	int fresh = made("ofd", O_RDWR);
	CHECK(lock(fresh, F_OFD_SETLK, F_WRLCK, 9, 1) && !lock(fresh, F_OFD_SETLK, F_WRLCK, 10, 1), "OFD lock");

	CHECK(breaks == 1, "signals: %d", breaks);
	CHECK(fcntl(lease, F_GETLEASE) == F_RDLCK && fcntl(breaking, F_GETLEASE) == F_RDLCK, "leases");
	CHECK(open("lease", O_WRONLY | O_NONBLOCK) < 0 && errno == EWOULDBLOCK && breaks == 2, "break: %d", breaks);
	CHECK(!fcntl(breaking, F_SETLEASE, F_UNLCK) && made("breaking", O_RDWR) >= 0, "given up");

	close(whole), close(other);
	CHECK(flock(whole = made("whole", O_RDWR), LOCK_EX | LOCK_NB), "the child has it still");
	CHECK(write(go[1], "", 1) == 1 && waitpid(child, NULL, 0) == child, "child");
	CHECK(!flock(whole, LOCK_EX | LOCK_NB), "nobody has it");
	workload_pass();
}
