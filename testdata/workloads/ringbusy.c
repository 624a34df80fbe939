/*
 * An io_uring with something in flight, which nothing can dump; it must come through the attempt unharmed:
 *
 *   poll     a read of an empty pipe, and a thread of the kernel's that polls the ring
 *   timeout  a timeout in an hour
 *   soon     a timeout in a moment: a dump that waits for it succeeds
 *   thread   nothing, but a thread has registered the ring for itself
 */
#include "workload.h"
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <pthread.h>

static struct io_uring_params p;
static int fd;
static char *sq, *cq;
static struct io_uring_sqe *sqes;
static unsigned taken, told;

static _Atomic unsigned *word(char *ring, unsigned offset) { return (void *)(ring + offset); }

/* Hands a request over and waits until the kernel has taken it. */
static void submit(struct io_uring_sqe sqe)
{
	struct timespec ts = { 0, 1000000 };

	sqes[taken] = sqe;
	*word(sq, p.sq_off.array + taken * sizeof(unsigned)) = taken;
	*word(sq, p.sq_off.tail) = ++taken;
	CHECK(syscall(SYS_io_uring_enter, fd, 1, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0) >= 0, "submit");
	while (*word(sq, p.sq_off.head) != taken)
		nanosleep(&ts, NULL);
}

static struct io_uring_cqe *completion(void)
{
	struct timespec ts = { 0, 1000000 };

	while (*word(cq, p.cq_off.tail) == told)
		nanosleep(&ts, NULL);
	return (struct io_uring_cqe *)(cq + p.cq_off.cqes) + told++;
}

/* Registers the ring with the calling thread, and waits. */
static void *registers(void *ready)
{
	struct io_uring_rsrc_update update = { .offset = -1U, .data = fd };

	if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_RING_FDS, &update, 1) != 1)
		workload_write("refused", strerror(errno));
	*(_Atomic int *)ready = 1;
	pause();
	return NULL;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "poll";
	struct __kernel_timespec hour = { .tv_sec = 3600 }, moment = { .tv_nsec = 60000000 };
	char text[4] = "";
	int pipes[2];

	workload_init();
	if (!strcmp(what, "poll"))
		p.flags = IORING_SETUP_SQPOLL, p.sq_thread_idle = 50;
	fd = syscall(SYS_io_uring_setup, 4, &p);
	if (fd < 0) {
		workload_write("refused", strerror(errno));
		workload_ready();
		workload_pass();
	}
	sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
	sqes = mmap(NULL, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	CHECK(sq != MAP_FAILED && cq != MAP_FAILED && sqes != MAP_FAILED && !pipe(pipes), "rings");

	if (!strcmp(what, "poll"))
		submit((struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = pipes[0], .addr = (uintptr_t)text, .len = 3, .user_data = 42 });
	else if (!strcmp(what, "thread")) {
		static _Atomic int ready;
		pthread_t thread;

		CHECK(!pthread_create(&thread, NULL, registers, (void *)&ready), "a thread");
		while (!ready)
			usleep(1000);
		workload_ready();
		workload_pass();
	} else
		submit((struct io_uring_sqe){ .opcode = IORING_OP_TIMEOUT, .fd = -1, .len = 1, .user_data = 42,
			.addr = (uintptr_t)(strcmp(what, "soon") ? &hour : &moment) });

	workload_ready();

	struct io_uring_cqe *cqe;
	if (!strcmp(what, "poll")) {
		CHECK(*word(cq, p.cq_off.tail) == 0, "the read is not over");
		CHECK(write(pipes[1], "abc", 3) == 3, "write");
		cqe = completion();
		CHECK(cqe->user_data == 42 && cqe->res == 3 && !memcmp(text, "abc", 3), "what was read: %d", cqe->res);
		workload_pass();
	}
	if (strcmp(what, "soon")) {
		CHECK(*word(cq, p.cq_off.tail) == 0, "the timeout is not over");
		submit((struct io_uring_sqe){ .opcode = IORING_OP_TIMEOUT_REMOVE, .fd = -1, .addr = 42, .user_data = 43 });
		struct io_uring_cqe *other = completion();
		cqe = completion();
		if (cqe->user_data == 43) {
			struct io_uring_cqe *swap = cqe;
			cqe = other, other = swap;
		}
		CHECK(other->user_data == 43 && other->res == 0, "what removing the timeout says: %d", other->res);
		CHECK(cqe->user_data == 42 && cqe->res == -ECANCELED, "the removed timeout: %d", cqe->res);
		workload_pass();
	}
	cqe = completion();
	CHECK(cqe->user_data == 42 && cqe->res == -ETIME, "the timeout: %d", cqe->res);
	workload_pass();
}
