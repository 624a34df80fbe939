/*
 * Many descriptors: argv[1] pipes with a byte in each, argv[2] descriptors of one regular file at offsets of their own. One
 * in a hundred of these shares the open file with the one before it, and is closed on exec; of the others one in three was
 * opened so, and half of those are no longer.
 */
#include "workload.h"
#include <sys/resource.h>

#define SHARED(i) ((i) % 100 == 99)
#define CLOEXEC(i) (SHARED(i) || (i) % 6 == 3)

int main(int argc, char **argv)
{
	int pipes = argc > 1 ? atoi(argv[1]) : 100, files = argc > 2 ? atoi(argv[2]) : 100;
	int(*p)[2] = calloc(pipes, sizeof(*p)), *f = calloc(files, sizeof(*f));
	struct rlimit lim;
	char c;

	workload_init();
	CHECK(!getrlimit(RLIMIT_NOFILE, &lim), "limit");
	lim.rlim_cur = lim.rlim_max;
	CHECK(!setrlimit(RLIMIT_NOFILE, &lim), "limit");
	int fd = open("data", O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, files + 1), "data");
	for (int i = 0; i < pipes; i++) {
		c = (char)(i * 7);
		CHECK(!pipe(p[i]) && write(p[i][1], &c, 1) == 1, "pipe %d of a limit of %ld", i, (long)lim.rlim_max);
	}
	for (int i = 0; i < files; i++) {
		f[i] = SHARED(i) ? fcntl(f[i - 1], F_DUPFD_CLOEXEC, 0) : open("data", O_RDONLY | (i % 3 ? 0 : O_CLOEXEC));
		CHECK(f[i] >= 0 && lseek(f[i], i, SEEK_SET) == i, "file %d", i);
		CHECK(!fcntl(f[i], F_SETFD, CLOEXEC(i) ? FD_CLOEXEC : 0), "flags of file %d", i);
	}
	workload_ready();
	for (int i = 0; i < pipes; i++)
		CHECK(read(p[i][0], &c, 1) == 1 && c == (char)(i * 7), "pipe %d", i);
	for (int i = 0; i < files; i++) {
		CHECK(lseek(f[i], 0, SEEK_CUR) == (SHARED(i + 1) && i + 1 < files ? i + 1 : i), "file %d", i);
		CHECK(fcntl(f[i], F_GETFD) == (CLOEXEC(i) ? FD_CLOEXEC : 0), "flags of file %d", i);
		if (SHARED(i))
			CHECK(lseek(f[i], 0, SEEK_SET) == 0 && lseek(f[i - 1], 0, SEEK_CUR) == 0, "file %d is not shared", i);
	}
	workload_pass();
}
