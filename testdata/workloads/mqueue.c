/* A POSIX message queue with a message in it, opened twice. It needs the filesystem of queues to be mounted. */
#include "workload.h"
#include <mqueue.h>

int main(int argc, char **argv)
{
	char buf[64], name[64];
	struct mq_attr attr = { .mq_maxmsg = 4, .mq_msgsize = sizeof(buf) };
	unsigned prio;

	workload_init();
	snprintf(name, sizeof(name), "/cryo-workload-%d", getpid());
	mqd_t q = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attr), out = mq_open(name, O_WRONLY | O_NONBLOCK);
	CHECK(q >= 0 && out >= 0, "mq_open");
	CHECK(mq_send(out, "first", 5, 1) == 0 && mq_send(out, "urgent", 6, 9) == 0, "mq_send");
	workload_ready();
	CHECK(mq_receive(q, buf, sizeof(buf), &prio) == 6 && prio == 9 && !memcmp(buf, "urgent", 6), "mq_receive");
	CHECK(mq_receive(q, buf, sizeof(buf), &prio) == 5 && prio == 1, "mq_receive");
	for (int i = 0; i < 4; i++)
		CHECK(mq_send(out, "x", 1, 0) == 0, "mq_send");
	CHECK(mq_send(out, "x", 1, 0) < 0 && errno == EAGAIN, "flags of the second");
	CHECK(mq_unlink(name) == 0, "mq_unlink");
	workload_pass();
}
