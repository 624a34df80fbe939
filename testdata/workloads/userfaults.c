/*
 * Memory that a program watches itself by userfaultfds: faults on missing pages, private and shared, served by a thread
 * or by a child that alone has the descriptor; a thread that waits for a page; pages that are write protected; pages of
 * shared memory that are not mapped. With argv[1] MiB of other memory, and a descriptor that is told of forks.
 */
#include "workload.h"
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>

#define PAGE 4096
#define PAGES 16
#define SIZE (PAGES * PAGE)
#define USER_ONLY 1 /* UFFD_USER_MODE_ONLY */
#define WP_UNPOPULATED (1 << 13)
#define WP_SHARED (1 << 12)
#define WP_ASYNC (1 << 15)

static char *area(int flags, int fd)
{
	char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);

	CHECK(p != MAP_FAILED, "mmap");
	return p;
}

static int open_uffd(int flags, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | flags);

	SKIP_UNLESS(fd >= 0 && !ioctl(fd, UFFDIO_API, &api), "a feature of userfaultfd");
	return fd;
}

static void watch(int fd, char *p, size_t len, int mode)
{
	struct uffdio_register reg = { .range = { (uint64_t)p, len }, .mode = mode };

	CHECK(!ioctl(fd, UFFDIO_REGISTER, &reg), "register %p for %d", p, mode);
}

static int copy_page(int fd, char *to, int seed)
{
	static __thread char page[PAGE] __attribute__((aligned(PAGE)));
	struct uffdio_copy c = { .dst = (uint64_t)to, .src = (uint64_t)page, .len = PAGE };

	if (seed)
		workload_fill(page, PAGE, seed);
	else
		memset(page, 0, PAGE);
	return ioctl(fd, UFFDIO_COPY, &c);
}

static void protect(int fd, char *p, size_t len, int on)
{
	struct uffdio_writeprotect wp = { .range = { (uint64_t)p, len }, .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };

	CHECK(!ioctl(fd, UFFDIO_WRITEPROTECT, &wp), "write protect %p", p);
}

/* Serves faults for ever; page n of an area gets the pattern n + 1. */
static volatile int served;
struct server {
	int fd;
	char *base;
};

static void *serve(void *arg)
{
	struct server *s = arg;
	struct uffd_msg m;

	for (;;) {
		struct pollfd p = { s->fd, POLLIN, 0 };
		if (poll(&p, 1, -1) < 0 && errno == EINTR)
			continue;
		ssize_t n = read(s->fd, &m, sizeof(m));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		CHECK(n == sizeof(m) && m.event == UFFD_EVENT_PAGEFAULT, "message");
		char *at = (char *)(m.arg.pagefault.address & -(uint64_t)PAGE);
		served++;
		if (copy_page(s->fd, at, (at - s->base) / PAGE + 1))
			CHECK(errno == EEXIST, "copy");
	}
	return NULL;
}

static pthread_t start(void *(*f)(void *), void *arg)
{
	pthread_t t;

	CHECK(!pthread_create(&t, NULL, f, arg), "thread");
	return t;
}

/* Pages of /proc/self/pagemap. */
static uint64_t entry(char *p)
{
	uint64_t e;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	CHECK(pread(fd, &e, 8, (uint64_t)p / PAGE * 8) == 8, "pagemap");
	close(fd);
	return e;
}

#define PROTECTED(p) (entry(p) >> 57 & 1)

/* Faults on missing pages: 0 written, 1 a page of zeros, 2 to 7 written, from 8 on holes. */
struct missing {
	char *p;
	struct server s;
};

static void missing_begin(struct missing *m, int flags, int fd)
{
	m->p = area(flags, fd);
	madvise(m->p, SIZE, MADV_HUGEPAGE);
	m->s = (struct server){ open_uffd(O_NONBLOCK | USER_ONLY, UFFD_FEATURE_MISSING_SHMEM), m->p };
	watch(m->s.fd, m->p, SIZE, UFFDIO_REGISTER_MODE_MISSING);
	for (int i = 0; i < 8; i++)
		CHECK(!copy_page(m->s.fd, m->p + i * PAGE, i == 1 ? 0 : 100 + i), "copy");
	start(serve, &m->s);
}

static void missing_end(struct missing *m)
{
	static char zero[PAGE];
	int before = served, fds[2];

	CHECK(fcntl(m->s.fd, F_GETFL) & O_NONBLOCK, "flags");
	for (int i = 0; i < 8; i++)
		CHECK(i == 1 ? !memcmp(m->p + PAGE, zero, PAGE) : workload_verify(m->p + i * PAGE, PAGE, 100 + i), "page %d", i);
	CHECK(served == before, "%d faults on pages that are there", served - before);
	CHECK(pipe(fds) == 0 && write(fds[1], m->p + 15 * PAGE, 1) < 0 && errno == EFAULT, "a fault of the kernel was served");
	for (int i = 8; i < PAGES; i++)
		CHECK(workload_verify(m->p + i * PAGE, PAGE, i + 1), "hole %d", i);
	CHECK(served == before + 8, "%d faults in 8 holes", served - before);
	close(fds[0]);
	close(fds[1]);
}

/* A thread waits for a page, which is served when all is over. */
static char *waited;
static int wait_fd;

static void *waiter(void *arg)
{
	CHECK(workload_verify(waited + 3 * PAGE, PAGE, 77), "the page that was waited for");
	return arg;
}

static pthread_t wait_begin(uint64_t features)
{
	waited = area(MAP_PRIVATE | MAP_ANONYMOUS, -1);
	wait_fd = open_uffd(O_NONBLOCK, features);
	watch(wait_fd, waited + 2 * PAGE, 4 * PAGE, UFFDIO_REGISTER_MODE_MISSING);
	pthread_t t = start(waiter, NULL);
	struct pollfd p = { wait_fd, POLLIN, 0 };
	CHECK(poll(&p, 1, 60000) == 1, "a waiting thread");
	return t;
}

static void *kernel_fault(void *arg)
{
	int *fds = arg;

	CHECK(write(fds[1], waited + 4 * PAGE, 1) == 1, "a fault of the kernel");
	return NULL;
}

static void wait_end(pthread_t t)
{
	struct uffd_msg m;
	int fds[2];
	struct pollfd p = { wait_fd, POLLIN, 0 };

	CHECK(poll(&p, 1, 60000) == 1 && read(wait_fd, &m, sizeof(m)) == sizeof(m), "its message");
	CHECK((m.arg.pagefault.address & -(uint64_t)PAGE) == (uint64_t)waited + 3 * PAGE, "its address");
	CHECK(!copy_page(wait_fd, waited + 3 * PAGE, 77) && !pthread_join(t, NULL), "end of the wait");
	waited[0] = waited[7 * PAGE] = 1; /* watched by nobody */
	CHECK(pipe(fds) == 0, "pipe");
	t = start(kernel_fault, fds);
	CHECK(poll(&p, 1, 60000) == 1 && read(wait_fd, &m, sizeof(m)) == sizeof(m), "message of the kernel's fault");
	CHECK(!copy_page(wait_fd, waited + 4 * PAGE, 78) && !pthread_join(t, NULL), "end of that");
	close(fds[0]);
	close(fds[1]);
}

/* The child alone has the descriptor of this address space. */
static char *childs;
static pid_t child_begin(void)
{
	static struct server s;

	childs = area(MAP_PRIVATE | MAP_ANONYMOUS, -1);
	s = (struct server){ open_uffd(0, 0), childs };
	watch(s.fd, childs, SIZE, UFFDIO_REGISTER_MODE_MISSING);
	pid_t pid = fork();
	if (!pid) {
		/* a blocking descriptor cannot be polled */
		for (;;) {
			struct uffd_msg m;
			if (read(s.fd, &m, sizeof(m)) != sizeof(m))
				continue;
			char *at = (char *)(m.arg.pagefault.address & -(uint64_t)PAGE);
			copy_page(s.fd, at, (at - s.base) / PAGE + 1);
		}
	}
	close(s.fd);
	for (int i = 0; i < 4; i++)
		CHECK(workload_verify(childs + i * PAGE, PAGE, i + 1), "served by the child");
	return pid;
}

static void child_end(pid_t pid)
{
	for (int i = 0; i < PAGES; i++)
		CHECK(workload_verify(childs + i * PAGE, PAGE, i + 1), "served by the child: %d", i);
	CHECK(!kill(pid, SIGKILL) && waitpid(pid, NULL, 0) == pid, "child");
}

/* Write protection: private and shared, served and asynchronous; two areas of one descriptor, side by side with one of another. */
static char *protectee[3];
static int wp_fd[2];

static void protect_begin(void)
{
	protectee[0] = area(MAP_PRIVATE | MAP_ANONYMOUS, -1);
	protectee[1] = area(MAP_SHARED | MAP_ANONYMOUS, -1);
	protectee[2] = area(MAP_PRIVATE | MAP_ANONYMOUS, -1);
	wp_fd[0] = open_uffd(O_NONBLOCK, WP_UNPOPULATED | WP_SHARED);
	wp_fd[1] = open_uffd(O_NONBLOCK, WP_UNPOPULATED | WP_SHARED | WP_ASYNC);
	watch(wp_fd[0], protectee[0], SIZE, UFFDIO_REGISTER_MODE_WP);
	watch(wp_fd[0], protectee[1], SIZE, UFFDIO_REGISTER_MODE_WP);
	watch(wp_fd[1], protectee[2], SIZE, UFFDIO_REGISTER_MODE_WP);
	for (int i = 0; i < 3; i++) {
		for (int page = 0; page < 8; page++)
			workload_fill(protectee[i] + page * PAGE, PAGE, 1000 * i + page);
		protect(wp_fd[i == 2], protectee[i] + 2 * PAGE, 9 * PAGE, 1); /* three of them are not there */
		protect(wp_fd[i == 2], protectee[i] + 4 * PAGE, PAGE, 0);
	}
}

static void *writer(void *arg)
{
	*(char *)arg = 1;
	return NULL;
}

static void protect_end(void)
{
	struct uffd_msg m;

	for (int i = 0; i < 3; i++)
		for (int page = 0; page < PAGES; page++)
			CHECK(PROTECTED(protectee[i] + page * PAGE) == (page >= 2 && page < 11 && page != 4), "area %d page %d", i, page);
	for (int i = 0; i < 3; i++) {
		for (int page = 0; page < 8; page++)
			CHECK(workload_verify(protectee[i] + page * PAGE, PAGE, 1000 * i + page), "area %d page %d", i, page);
		protectee[i][4 * PAGE] = 1;
		CHECK(read(wp_fd[i == 2], &m, sizeof(m)) < 0 && errno == EAGAIN, "a message for nothing");
	}
	protectee[2][3 * PAGE] = 1;
	CHECK(!PROTECTED(protectee[2] + 3 * PAGE), "a write that leaves the protection");
	for (int i = 0; i < 2; i++) {
		pthread_t t = start(writer, protectee[i] + 9 * PAGE);
		struct pollfd p = { wp_fd[0], POLLIN, 0 };
		CHECK(poll(&p, 1, 60000) == 1 && read(wp_fd[0], &m, sizeof(m)) == sizeof(m), "message of a write");
		CHECK(m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP, "flags %llx", m.arg.pagefault.flags);
		protect(wp_fd[0], protectee[i] + 9 * PAGE, PAGE, 0);
		CHECK(!pthread_join(t, NULL), "end of a write");
	}
}

/* Minor faults: the content is there, by another mapping, but is not mapped. */
static char *minor, *other;
static int minor_fd;

static void minor_begin(void)
{
	int fd = memfd_create("minor", MFD_CLOEXEC);

	CHECK(ftruncate(fd, SIZE) == 0, "memfd");
	minor = area(MAP_SHARED, fd);
	other = area(MAP_SHARED, fd);
	close(fd);
	workload_fill(other, SIZE, 5);
	minor_fd = open_uffd(O_NONBLOCK, UFFD_FEATURE_MINOR_SHMEM);
	watch(minor_fd, minor, SIZE, UFFDIO_REGISTER_MODE_MINOR);
	for (int i = 0; i < 5; i++) {
		struct uffdio_continue c = { .range = { (uint64_t)minor + i * PAGE, PAGE } };
		CHECK(!ioctl(minor_fd, UFFDIO_CONTINUE, &c), "continue");
	}
}

static void *minor_reader(void *arg)
{
	CHECK(workload_verify(arg, PAGE, 5 + 9 * (PAGE / 8)), "page after a minor fault");
	return NULL;
}

static void minor_end(void)
{
	struct uffd_msg m;
	struct pollfd p = { minor_fd, POLLIN, 0 };

	CHECK(workload_verify(minor, 5 * PAGE, 5), "pages that were mapped");
	CHECK(read(minor_fd, &m, sizeof(m)) < 0 && errno == EAGAIN, "a fault on a mapped page");
	pthread_t t = start(minor_reader, minor + 9 * PAGE);
	CHECK(poll(&p, 1, 60000) == 1 && read(minor_fd, &m, sizeof(m)) == sizeof(m), "message of a minor fault");
	CHECK(m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR, "flags %llx", m.arg.pagefault.flags);
	struct uffdio_continue c = { .range = { (uint64_t)minor + 9 * PAGE, PAGE } };
	CHECK(!ioctl(minor_fd, UFFDIO_CONTINUE, &c) && !pthread_join(t, NULL), "continue");
}

int main(int argc, char **argv)
{
	struct missing private, shared, file;
	size_t more = argc > 1 ? (size_t)atoi(argv[1]) << 20 : 0;

	workload_init();
	int fd = memfd_create("missing", MFD_CLOEXEC);
	CHECK(ftruncate(fd, SIZE) == 0, "memfd");
	pid_t child = child_begin();
	missing_begin(&private, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	missing_begin(&shared, MAP_SHARED | MAP_ANONYMOUS, -1);
	missing_begin(&file, MAP_SHARED, fd);
	char *ballast = more ? mmap(NULL, more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;
	CHECK(ballast != MAP_FAILED, "mmap");
	workload_fill(ballast, more, 99);
	pthread_t waiting = wait_begin(more ? UFFD_FEATURE_EVENT_FORK : 0);
	protect_begin();
	minor_begin();
	workload_ready();
	CHECK(workload_verify(ballast, more, 99), "other memory");
	missing_end(&private);
	missing_end(&shared);
	missing_end(&file);
	wait_end(waiting);
	protect_end();
	minor_end();
	child_end(child);
	workload_pass();
}
