/*
 * Rings of io_uring(7) with nothing in flight: positions far from zero, completions yet to be read, requests yet to be
 * handed over, registered buffers, a ring that a child shares, and one whose thread of the kernel's takes the requests. All go on where they were.
 * With "nobody" the program has given its privileges away, and so has that thread.
 */
#include "workload.h"
#include <dirent.h>
#include <sched.h>
#include <linux/io_uring.h>
#include <sys/uio.h>

struct ring {
	int fd;
	struct io_uring_params p;
	char *mem;
	struct io_uring_sqe *sqes;
	size_t size;
};

static _Atomic unsigned *word(struct ring *r, unsigned offset) { return (void *)(r->mem + offset); }

static int ring_open(struct ring *r, unsigned entries, unsigned flags, unsigned cq_entries)
{
	r->p = (struct io_uring_params){ .flags = flags, .cq_entries = cq_entries, .sq_thread_idle = 20 };
	r->fd = syscall(SYS_io_uring_setup, entries, &r->p);
	if (r->fd < 0)
		return -1;
	size_t sq = r->p.sq_off.array + r->p.sq_entries * sizeof(unsigned), cq = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	r->size = sq > cq ? sq : cq;
	r->mem = mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, r->p.sq_entries * sizeof(*r->sqes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	CHECK(r->mem != MAP_FAILED && r->sqes != MAP_FAILED, "mmap of a ring");
	return 0;
}

static struct io_uring_sqe *ring_next(struct ring *r, unsigned char opcode, unsigned long data)
{
	unsigned tail = *word(r, r->p.sq_off.tail), slot = tail & (r->p.sq_entries - 1);
	struct io_uring_sqe *sqe = &r->sqes[slot];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = opcode;
	sqe->fd = -1;
	sqe->user_data = data;
	if (r->p.sq_off.array)
		*word(r, r->p.sq_off.array + slot * sizeof(unsigned)) = slot;
	return sqe;
}

static void ring_push(struct ring *r) { *word(r, r->p.sq_off.tail) += 1; }

static void ring_submit(struct ring *r, unsigned n, unsigned wait)
{
	if (r->p.flags & IORING_SETUP_SQPOLL)
		CHECK(syscall(SYS_io_uring_enter, r->fd, 0, wait, IORING_ENTER_SQ_WAKEUP | (wait ? IORING_ENTER_GETEVENTS : 0), NULL, 0) >= 0, "wake the thread");
	else
		CHECK(syscall(SYS_io_uring_enter, r->fd, n, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0) == n, "submit %u", n);
}

static void ring_expect(struct ring *r, unsigned long data, int res)
{
	unsigned head = *word(r, r->p.cq_off.head);

	CHECK(head != *word(r, r->p.cq_off.tail), "a completion is missing, at %u", head);
	struct io_uring_cqe *cqe = (struct io_uring_cqe *)(r->mem + r->p.cq_off.cqes) + (head & (r->p.cq_entries - 1));
	CHECK(cqe->user_data == data && cqe->res == res, "completion %lu, %d at %u in place of %lu, %d", (unsigned long)cqe->user_data, cqe->res, head, data, res);
	*word(r, r->p.cq_off.head) += 1;
}

static void ring_nops(struct ring *r, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		ring_next(r, IORING_OP_NOP, i);
		ring_push(r);
		ring_submit(r, 1, 1);
		ring_expect(r, i, 0);
	}
}

/* Writes a file through the ring and reads it back. */
static void ring_file(struct ring *r, const char *name)
{
	char text[6] = "";
	int fd = openat(workload_dir, name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	struct io_uring_sqe *sqe = ring_next(r, IORING_OP_WRITE, 71);

	sqe->fd = fd, sqe->addr = (uintptr_t)"hello", sqe->len = 5;
	ring_push(r);
	ring_submit(r, 1, 1);
	ring_expect(r, 71, 5);
	sqe = ring_next(r, IORING_OP_READ, 72);
	sqe->fd = fd, sqe->addr = (uintptr_t)text, sqe->len = 5;
	ring_push(r);
	ring_submit(r, 1, 1);
	ring_expect(r, 72, 5);
	CHECK(!strcmp(text, "hello"), "read back \"%s\"", text);
	close(fd);
}

/* Writes a file out of a registered buffer, and reads it back into another. */
static void ring_fixed(struct ring *r, struct iovec *buffers)
{
	int fd = openat(workload_dir, "fixed", O_CREAT | O_RDWR | O_CLOEXEC, 0600);

	memcpy(buffers[2].iov_base, "fixed", 5);
	for (int i = 0; i < 2; i++) {
		struct io_uring_sqe *sqe = ring_next(r, i ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED, 81 + i);

		sqe->fd = fd, sqe->addr = (uintptr_t)buffers[i ? 0 : 2].iov_base, sqe->len = 5, sqe->buf_index = i ? 0 : 2;
		ring_push(r);
		ring_submit(r, 1, 1);
		ring_expect(r, 81 + i, 5);
	}
	CHECK(!memcmp(buffers[0].iov_base, "fixed", 5), "a registered buffer");
	memset(buffers[0].iov_base, 0, 5);
	close(fd);
}

/* Some completions stay to be read, and some requests to be handed over. */
static void ring_leave(struct ring *r, unsigned unread, unsigned waiting)
{
	for (unsigned i = 0; i < unread; i++) {
		unsigned done = *word(r, r->p.cq_off.tail);

		ring_next(r, IORING_OP_NOP, 1000 + i);
		ring_push(r);
		ring_submit(r, 1, 1);
		while (*word(r, r->p.cq_off.tail) == done)
			sched_yield();
	}
	for (unsigned i = 0; i < waiting; i++) {
		ring_next(r, IORING_OP_NOP, 2000 + i);
		ring_push(r);
	}
}

static void ring_check(struct ring *r, unsigned sq, unsigned cq, unsigned unread, unsigned waiting, const char *file)
{
	CHECK(*word(r, r->p.sq_off.head) == sq && *word(r, r->p.cq_off.tail) == cq, "positions %u, %u in place of %u, %u",
	      *word(r, r->p.sq_off.head), *word(r, r->p.cq_off.tail), sq, cq);
	CHECK(*word(r, r->p.sq_off.tail) == sq + waiting && *word(r, r->p.cq_off.head) == cq - unread, "own positions");
	for (unsigned i = 0; i < unread; i++)
		ring_expect(r, 1000 + i, 0);
	if (waiting)
		ring_submit(r, waiting, waiting);
	for (unsigned i = 0; i < waiting; i++)
		ring_expect(r, 2000 + i, 0);
	ring_nops(r, 3 * r->p.cq_entries);
	ring_file(r, file);
}

/* Every thread has the program's user, those that are the kernel's too. */
static void check_owner(void)
{
	char path[300], line[100];
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *e;

	while ((e = readdir(tasks))) {
		unsigned uid = ~0;

		snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
		FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "r");
		if (!f)
			continue;
		while (fgets(line, sizeof(line), f))
			sscanf(line, "Uid: %u", &uid);
		CHECK(uid == getuid(), "thread %s has user %u", e->d_name, uid);
		fclose(f);
	}
	closedir(tasks);
}

int main(int argc, char **argv)
{
	struct ring plain, large, thread = { .fd = -1 };
	struct iovec buffers[3] = { { 0 } };
	int status, pipes[2];

	workload_init();
	if (argc > 1)
		CHECK(!chown(".", 65534, 65534) && !setgid(65534) && !setuid(65534), "become nobody");
	if (ring_open(&plain, 8, 0, 0)) {
		workload_write("refused", strerror(errno));
		workload_ready();
		workload_pass();
	}
	CHECK(!ring_open(&large, 2048, IORING_SETUP_CQSIZE, 8192), "a large ring: %s", strerror(errno));
	int thread_made = !ring_open(&thread, 16, IORING_SETUP_SQPOLL, 0);

	ring_nops(&plain, 1003);
	ring_file(&plain, "plain");
	ring_leave(&plain, 5, 3);
	ring_nops(&large, 5);
	for (int i = 0; i < 3; i += 2)
		buffers[i] = (struct iovec){ mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 3 * 4096 + i };
	CHECK(!syscall(SYS_io_uring_register, large.fd, IORING_REGISTER_BUFFERS, buffers, 3), "register buffers: %s", strerror(errno));
	ring_fixed(&large, buffers);
	if (thread_made) {
		ring_nops(&thread, 77);
		ring_file(&thread, "thread");
		ring_leave(&thread, 4, 0);
	}
	CHECK(!pipe2(pipes, O_CLOEXEC), "pipe");
	pid_t child = fork();
	CHECK(child >= 0, "fork");
	if (!child) {
		close(workload_dir);
		if (thread_made) {
			close(thread.fd);
			munmap(thread.mem, thread.size);
			munmap(thread.sqes, thread.p.sq_entries * sizeof(*thread.sqes));
		}
		CHECK(write(pipes[1], "x", 1) == 1, "say so");
		pause();
		_exit(1);
	}
	CHECK(read(pipes[0], &status, 1) == 1, "the child lets go of the thread");

	workload_ready();

	CHECK(!kill(child, SIGKILL) && waitpid(child, &status, 0) == child, "the child");
	ring_check(&plain, 1010, 1010, 5, 3, "plain");
	ring_check(&large, 7, 7, 0, 0, "large");
	ring_fixed(&large, buffers);
	if (thread_made)
		ring_check(&thread, 83, 83, 4, 0, "thread");
	check_owner();
	workload_pass();
}
