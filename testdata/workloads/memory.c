/* Kinds of mapping: private and shared, anonymous and file, copy-on-write, holes, protections, memfd, mlock. */
#include "workload.h"
#include <sys/shm.h>

#define MB (1 << 20)

static void *map(size_t len, int prot, int flags, int fd)
{
	void *p = mmap(NULL, len, prot, flags, fd, 0);

	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

int main(void)
{
	workload_init();
	int fd = open("mapped", O_CREAT | O_RDWR, 0600);
	char page[4096];
	memset(page, 'f', sizeof(page));
	for (int i = 0; i < 16; i++)
		CHECK(write(fd, page, sizeof(page)) == sizeof(page), "file");

	char *priv = map(MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *shared = map(MB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	char *fpriv = map(16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
	char *fshared = map(16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	char *none = map(MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	char *sparse = map(64ul * MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
	char *ro = map(MB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	int mfd = syscall(SYS_memfd_create, "name of mine", 0);
	CHECK(mfd >= 0 && !ftruncate(mfd, MB), "memfd");
	char *memfd = map(MB, PROT_READ | PROT_WRITE, MAP_SHARED, mfd);
	close(mfd);
	char *locked = map(4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	CHECK(!mlock(locked, 4 * 4096), "mlock");
	char *wipe = map(4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	CHECK(!madvise(wipe, 4096, MADV_DONTFORK), "madvise");
	close(fd);

	workload_fill(priv, MB, 10);
	workload_fill(shared, MB, 20);
	workload_fill(fpriv + 4096, 4096, 30);
	workload_fill(fshared + 8192, 4096, 40);
	workload_fill(none, MB, 50);
	workload_fill(sparse + 17 * MB, 4096, 60);
	workload_fill(sparse + 60ul * MB, 4096, 61);
	workload_fill(ro, MB, 70);
	workload_fill(memfd, MB, 80);
	memset(locked, 3, 4 * 4096);
	CHECK(!mprotect(none, MB, PROT_NONE) && !mprotect(ro, MB, PROT_READ), "mprotect");

	/* A child that shares all of it copy-on-write and changes one page of its own. */
	pid_t child = fork();
	if (!child) {
		workload_fill(priv + 4096, 4096, 1000);
		workload_wait();
		if (!workload_verify(priv, 4096, 10) || !workload_verify(priv + 4096, 4096, 1000) ||
		    !workload_verify(priv + 8192, MB - 8192, 10 + 1024))
			_exit(1);
		while (*(volatile uint64_t *)shared != 4242)
			usleep(1000);
		_exit(33);
	}
	usleep(1000);
	workload_ready();

	CHECK(workload_verify(priv, MB, 10), "private");
	CHECK(workload_verify(shared, MB, 20), "shared");
	CHECK(fpriv[0] == 'f' && workload_verify(fpriv + 4096, 4096, 30), "private file");
	CHECK(workload_verify(fshared + 8192, 4096, 40), "shared file");
	CHECK(!mprotect(none, MB, PROT_READ) && workload_verify(none, MB, 50), "PROT_NONE");
	CHECK(workload_verify(sparse + 17 * MB, 4096, 60) && workload_verify(sparse + 60ul * MB, 4096, 61), "sparse");
	CHECK(!sparse[0] && !sparse[30 * MB], "sparse holes");
	CHECK(workload_verify(ro, MB, 70), "read-only");
	CHECK(write(open("/dev/null", O_WRONLY), ro, 1) == 1, "read-only is readable");
	CHECK(read(open("/dev/zero", O_RDONLY), ro, 1) == -1 && errno == EFAULT, "read-only is not writable");
	CHECK(workload_verify(memfd, MB, 80), "memfd");
	CHECK(locked[4096] == 3, "locked");
	*(volatile uint64_t *)shared = 4242;
	int st;
	CHECK(waitpid(child, &st, 0) == child && WIFEXITED(st) && WEXITSTATUS(st) == 33, "child %x", st);
	workload_pass();
}
