/*
 * One mapping of each kind the kernel knows: what it holds, how it is protected, and what /proc/self/smaps says of its
 * flags, before and after. Kinds that this machine has not are left out.
 */
#include "workload.h"
#include <linux/aio_abi.h>

#define PAGES 16
#define LEN ((size_t)PAGES * 4096)
#define HUGE ((size_t)2 << 20)

struct kind {
	const char *name;
	char *at;
	size_t len;
	size_t from, to; /* written pages */
	char before[256], after[256]; /* protection and flags */
};

static struct kind kinds[40];
static int n;
static aio_context_t ctx;
static int aio_file;

static void *map(int prot, int flags, int fd, size_t len)
{
	void *p = mmap(NULL, len, prot, flags, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Keeps mapping p under a name, with pages from to to written. */
static struct kind *keep(const char *name, void *p, size_t from, size_t to)
{
	if (!p)
		return NULL;
	struct kind *k = &kinds[n++];
	k->name = name, k->at = p, k->len = LEN, k->from = from, k->to = to;
	workload_fill(k->at + from * 4096, (to - from) * 4096, 1000 * n);
	return k;
}

static int file(const char *name, int keep_it)
{
	int fd = open(name, O_CREAT | O_RDWR, 0600);
	char page[4096];

	memset(page, 'f', sizeof(page));
	CHECK(fd >= 0, "%s", name);
	for (int i = 0; i < PAGES; i++)
		CHECK(write(fd, page, sizeof(page)) == sizeof(page), "%s", name);
	if (!keep_it)
		CHECK(!unlink(name), "unlink");
	return fd;
}

static void anonymous(void)
{
	const int rw = PROT_READ | PROT_WRITE, priv = MAP_PRIVATE | MAP_ANONYMOUS;
	struct kind *k;

	keep("anonymous", map(rw, priv, -1, LEN), 2, 5);
	k = keep("unreadable", map(rw, priv, -1, LEN), 0, 3);
	mprotect(k->at, LEN, PROT_NONE);
	k = keep("executable", map(rw, priv, -1, LEN), 1, 2);
	mprotect(k->at, LEN, PROT_READ | PROT_EXEC);
	keep("stack", map(rw, priv | MAP_GROWSDOWN | MAP_STACK, -1, LEN), 4, PAGES);
	keep("no reserve", map(rw, priv | MAP_NORESERVE, -1, LEN), 0, 1);
	k = keep("locked", map(rw, priv, -1, LEN), 0, PAGES);
	CHECK(!mlock(k->at, LEN), "mlock");
	k = keep("locked and unreadable", map(rw, priv, -1, LEN), 0, 3);
	CHECK(!mlock(k->at, LEN) && !mprotect(k->at, LEN, PROT_NONE), "mlock");
	k = keep("zeros", map(rw, priv, -1, LEN), 0, PAGES);
	memset(k->at, 0, LEN);
	k->from = k->to = 0;

	static const struct {
		const char *name;
		int advice;
	} advices[] = { { "sequential", MADV_SEQUENTIAL }, { "random", MADV_RANDOM }, { "dontfork", MADV_DONTFORK },
			{ "dontdump", MADV_DONTDUMP }, { "mergeable", MADV_MERGEABLE }, { "hugepage", MADV_HUGEPAGE },
			{ "nohugepage", MADV_NOHUGEPAGE }, { "wipeonfork", MADV_WIPEONFORK } };
	for (size_t i = 0; i < sizeof(advices) / sizeof(advices[0]); i++) {
		void *p = map(rw, priv, -1, LEN);
		if (!madvise(p, LEN, advices[i].advice))
			keep(advices[i].name, p, 1, 4);
	}
	/* The kernel may take its pages away at any time: only its flags are to stay. */
	if ((k = keep("droppable", map(rw, 8 | MAP_ANONYMOUS, -1, LEN), 0, 1))) /* MAP_DROPPABLE, Linux 6.11 */
		k->from = k->to = 0, k->at[0] = 0;
	k = keep("guarded", map(rw, priv, -1, LEN), 8, PAGES);
	if (madvise(k->at + 4096, 4096, 102)) /* MADV_GUARD_INSTALL, Linux 6.13 */
		k->name = "not guarded";
}

static void shared(void)
{
	const int rw = PROT_READ | PROT_WRITE;
	int fd = open("/dev/zero", O_RDWR);

	keep("shared", map(rw, MAP_SHARED | MAP_ANONYMOUS, -1, LEN), 3, 7);
	keep("private zero device", map(rw, MAP_PRIVATE, fd, LEN), 0, 2);
	keep("shared zero device", map(rw, MAP_SHARED, fd, LEN), 0, 2);
	close(fd);

	fd = syscall(SYS_memfd_create, "kept open", 0);
	CHECK(fd >= 0 && !ftruncate(fd, LEN), "memfd");
	keep("memfd", map(rw, MAP_SHARED, fd, LEN), 0, 6);
	/* Its other pages are those of the mapping before. */
	keep("private memfd", map(rw, MAP_PRIVATE, fd, LEN), 2, 4);

	fd = file("mapped", 1);
	keep("shared file", map(rw, MAP_SHARED, fd, LEN), 1, 3);
	keep("private file", map(rw, MAP_PRIVATE, fd, LEN), 5, 6);
	close(fd);
	fd = file("deleted", 0);
	keep("deleted file", map(rw, MAP_SHARED, fd, LEN), 1, 3);
	keep("private deleted file", map(rw, MAP_PRIVATE, fd, LEN), 5, 6);
	close(fd);

	void *p = map(rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, HUGE);
	if (p)
		keep("hugetlb", p, 0, 3)->len = HUGE;
}


/* Notes what smaps says of every kind: protection and VmFlags. */
static void look(int after)
{
	char line[512], prot[8] = "";
	unsigned long start = 0, end;
	FILE *f = fopen("/proc/self/smaps", "r");
	struct kind *k = NULL;

	CHECK(f, "smaps");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %7s", &start, &end, prot) == 3) {
			k = NULL;
			for (int i = 0; i < n; i++)
				if ((unsigned long)kinds[i].at >= start && (unsigned long)kinds[i].at < end)
					k = &kinds[i];
		} else if (k && !strncmp(line, "VmFlags:", 8)) {
			snprintf(after ? k->after : k->before, sizeof(k->before), "%s %.240s", prot, line + 8);
		}
	}
	fclose(f);
}

static void aio(void)
{
	if (syscall(SYS_io_setup, 40, &ctx)) {
		ctx = 0;
		return;
	}
	/* Five events are done, two of them taken. */
	struct iocb cb = { .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = aio_file, .aio_buf = (uintptr_t)"x", .aio_nbytes = 1 };
	struct iocb *p[5] = { &cb, &cb, &cb, &cb, &cb };
	struct io_event ev[2];
	for (int i = 0; i < 5; i++) {
		cb.aio_data = 70 + i;
		CHECK(syscall(SYS_io_submit, ctx, 1, p) == 1, "io_submit");
	}
	CHECK(syscall(SYS_io_getevents, ctx, 2, 2, ev, NULL) == 2 && ev[1].data == 71, "io_getevents");
}

static void aio_verify(void)
{
	struct io_event ev[8];

	if (!ctx)
		return;
	CHECK(syscall(SYS_io_getevents, ctx, 3, 8, ev, NULL) == 3, "events that were not taken");
	CHECK(ev[0].data == 72 && ev[2].data == 74, "their order");
	struct iocb cb = { .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_fildes = aio_file, .aio_buf = (uintptr_t)"y", .aio_nbytes = 1, .aio_data = 99 };
	struct iocb *p = &cb;
	for (int i = 0; i < 200; i++) { /* around the ring */
		CHECK(syscall(SYS_io_submit, ctx, 1, &p) == 1, "io_submit %d", i);
		CHECK(syscall(SYS_io_getevents, ctx, 1, 1, ev, NULL) == 1 && ev[0].data == 99, "io_getevents %d", i);
	}
	CHECK(!syscall(SYS_io_destroy, ctx), "io_destroy");
}

static void verify(int i)
{
	struct kind *k = &kinds[i];

	CHECK(!strcmp(k->before, k->after), "%s: flags were %s and are %s", k->name, k->before, k->after);
	if (strstr(k->name, "unreadable"))
		CHECK(!mprotect(k->at, k->len, PROT_READ), "mprotect");
	CHECK(workload_verify(k->at + k->from * 4096, (k->to - k->from) * 4096, 1000 * (i + 1)), "%s", k->name);
	if (strstr(k->name, "memfd") || !strcmp(k->name, "guarded") || !strcmp(k->name, "droppable"))
		return;
	char rest = strstr(k->name, " file") || !strcmp(k->name, "shared file") ? 'f' : 0;
	/* The private mapping of a file shows what the shared one has written. */
	if (strstr(k->name, "private"))
		return;
	for (size_t at = 0; at < k->len; at += 4096)
		if (at < k->from * 4096 || at >= k->to * 4096)
			CHECK(k->at[at] == rest, "%s: page %zu begins with %d", k->name, at / 4096, k->at[at]);
}

int main(void)
{
	workload_init();
	aio_file = open("aio", O_CREAT | O_RDWR, 0600);
	anonymous();
	shared();
	aio();
	look(0);

	workload_ready();

	look(1);
	aio_verify();
	for (int i = 0; i < n; i++)
		verify(i);
	workload_pass();
}
