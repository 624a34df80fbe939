/* Threads in system calls whose progress only the kernel knows, which it resumes by restart_syscall: none may return EINTR,
 * however often the thread is stopped. */
#include "workload.h"
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

static int fds[2];
static sem_t sem;

static void *polls(void *timeout)
{
	struct pollfd p = { fds[0], POLLIN, 0 };
	int n = poll(&p, 1, (int)(intptr_t)timeout);

	CHECK(n == 1 && p.revents & POLLIN, "poll with timeout %d: %d, %s", (int)(intptr_t)timeout, n, strerror(errno));
	return NULL;
}

static void *waits(void *unused)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 3600;
	CHECK(sem_timedwait(&sem, &end) == 0, "sem_timedwait: %s", strerror(errno));
	return unused;
}

int main(void)
{
	pthread_t t[3];

	workload_init();
	CHECK(!pipe(fds) && !sem_init(&sem, 0, 0), "pipe, semaphore");
	CHECK(!pthread_create(&t[0], NULL, polls, (void *)-1) && !pthread_create(&t[1], NULL, polls, (void *)3600000) &&
	      !pthread_create(&t[2], NULL, waits, NULL), "threads");
	workload_ready();

	CHECK(write(fds[1], "x", 1) == 1 && !sem_post(&sem), "wake them");
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_join(t[i], NULL), "join");
	workload_pass();
}
