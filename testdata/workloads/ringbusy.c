/*
 * An io_uring with a thread of the kernel's that polls it, and a read of an empty pipe in flight. Nothing can dump that;
 * it must come through the attempt unharmed.
 */
#include "workload.h"
#include <linux/io_uring.h>

static _Atomic unsigned *word(char *ring, unsigned offset) { return (void *)(ring + offset); }

int main(void)
{
	struct io_uring_params p = { .flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 50 };
	struct timespec ts = { 0, 1000000 };
	char text[4] = "";
	int fd, pipes[2];

	workload_init();
	fd = syscall(SYS_io_uring_setup, 4, &p);
	if (fd < 0) {
		workload_write("refused", strerror(errno));
		workload_ready();
		workload_pass();
	}
	char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_CQ_RING);
	struct io_uring_sqe *sqes = mmap(NULL, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQES);
	CHECK(sq != MAP_FAILED && cq != MAP_FAILED && sqes != MAP_FAILED && !pipe(pipes), "rings");

	sqes[0] = (struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = pipes[0], .addr = (uintptr_t)text, .len = 3, .user_data = 42 };
	*word(sq, p.sq_off.array) = 0;
	*word(sq, p.sq_off.tail) += 1;
	CHECK(syscall(SYS_io_uring_enter, fd, 0, 0, IORING_ENTER_SQ_WAKEUP, NULL, 0) >= 0, "wake the thread");
	while (*word(sq, p.sq_off.head) != 1)
		nanosleep(&ts, NULL);

	workload_ready();

	CHECK(*word(cq, p.cq_off.tail) == 0, "the read is not over");
	CHECK(write(pipes[1], "abc", 3) == 3, "write");
	while (*word(cq, p.cq_off.tail) != 1)
		nanosleep(&ts, NULL);
	struct io_uring_cqe *cqe = (void *)(cq + p.cq_off.cqes);
	CHECK(cqe->user_data == 42 && cqe->res == 3 && !memcmp(text, "abc", 3), "what was read: %d", cqe->res);
	workload_pass();
}
