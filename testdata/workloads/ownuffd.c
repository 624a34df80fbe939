/*
 * What is in the way of tracking: a mapping with an asynchronously write protecting userfaultfd of the program's own, which
 * it uses itself, a child that calls exec, and all descriptors closed again and again. argv[1] tells the exec'ed child
 * what it is.
 */
#include "workload.h"
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

#define PAGE 4096
#define PAGES 64

static uint64_t *fresh(void)
{
	uint64_t *p = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED && !madvise(p, PAGES * PAGE, MADV_NOHUGEPAGE), "mmap");
	return p;
}

/* Writes one page after the other, and knows what is in each. */
static void churn(uint64_t *p, uint64_t *want, int rounds)
{
	for (int i = 0; i < rounds; i++) {
		int at = rand() % PAGES;
		p[at * PAGE / 8 + 5] = want[at] = rand();
	}
	for (int i = 0; i < PAGES; i++)
		CHECK(p[i * PAGE / 8 + 5] == want[i], "page %d: %lx in place of %lx", i, p[i * PAGE / 8 + 5], want[i]);
}

static int go(void)
{
	return !faccessat(workload_dir, "go", F_OK, 0);
}

static void child(void)
{
	uint64_t *p = fresh(), want[PAGES] = {};

	for (int i = 0; i < 20 && !go(); i++) {
		churn(p, want, 200);
		usleep(1000);
	}
	if (go())
		_exit(0);
	execl("/proc/self/exe", "ownuffd", "child", NULL);
	_exit(7);
}

int main(int argc, char **argv)
{
	workload_init();
	if (argc > 1)
		child();
	uint64_t *plain = fresh(), *theirs = fresh(), want[2][PAGES] = {};
	pid_t pid = fork();
	if (!pid)
		child();
	churn(theirs, want[1], 1000);
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = { .api = UFFD_API, .features = 1 << 15 | 1 << 13 };
	struct uffdio_register reg = { .range = { (uint64_t)theirs, PAGES * PAGE }, .mode = UFFDIO_REGISTER_MODE_WP };
	int tracked = uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &reg);
	workload_write("ready", "ready\n");
	while (!go()) {
		churn(plain, want[0], 300);
		churn(theirs, want[1], 300);
		if (tracked && access("final", F_OK)) {
			struct uffdio_writeprotect wp = { .range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
			CHECK(!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), "write protect");
		} else if (tracked) {
			tracked = 0;
			close(uffd); /* it cannot be dumped */
			workload_write("closed", "closed\n");
		}
		for (int fd = 3; fd < 600; fd++)
			if (fd != uffd && fd != workload_dir)
				close(fd);
		usleep(500);
	}
	churn(plain, want[0], 0);
	churn(theirs, want[1], 0);
	int status;
	CHECK(waitpid(pid, &status, 0) == pid && !status, "child %x", status);
	workload_pass();
}
