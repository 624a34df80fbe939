/*
 * Processes that share their memory and are no threads of each other (clone with CLONE_VM): one with descriptors, working
 * directory and signal actions of its own, which has a thread and a forked child; one that shares all that too, and has
 * another below it.
 */
#include "workload.h"
#include <pthread.h>
#include <sched.h>

#define STACK (256 << 10)

static volatile int turn[6], begun;
static volatile uint64_t *shared;
static volatile int hits;

static pid_t share(int (*body)(void *), int flags, void *arg)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);

	CHECK(stack != MAP_FAILED, "stack");
	pid_t pid = clone(body, stack + STACK, CLONE_VM | flags | SIGCHLD, arg);
	CHECK(pid > 0, "clone");
	return pid;
}

/* Nothing of the C library's that keeps a state of the process: there is one state for all. */
static void await(volatile int *what, int value)
{
	struct timespec ts = { 0, 1000000 };

	while (*what != value)
		syscall(SYS_nanosleep, &ts, NULL);
}

static void hit(int sig)
{
	(void)sig;
	__atomic_add_fetch(&hits, 1, __ATOMIC_SEQ_CST);
}

static int grandchild(void *arg)
{
	(void)arg;
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	await(&turn[3], 1);
	shared[3] = syscall(SYS_getpid);
	syscall(SYS_exit, 3);
	return 0;
}

static int all(void *arg) /* shares everything */
{
	pid_t *below = arg;

	*below = share(grandchild, CLONE_FS | CLONE_FILES | CLONE_SIGHAND, NULL);
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	await(&turn[1], 1);
	int st;
	if (syscall(SYS_wait4, *below, &st, 0, NULL) != *below || st != 3 << 8)
		syscall(SYS_exit, 9);
	shared[1] = syscall(SYS_getpid);
	shared[4] = syscall(SYS_fcntl, 7, F_GETFD);
	syscall(SYS_exit, 1);
	return 0;
}

static int second(void *arg)
{
	(void)arg;
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	await(&turn[2], 1);
	shared[2] = syscall(SYS_gettid);
	syscall(SYS_exit, 0);
	return 0;
}

static pid_t forked;
static int own(void *arg) /* shares memory alone */
{
	char *stack = (char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + STACK;

	(void)arg;
	syscall(SYS_close, 7);
	syscall(SYS_chdir, "/");
	clone(second, stack, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, NULL);
	forked = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!forked) {
		await((volatile int *)&shared[5], 1); /* of shared memory: it has a copy of the rest */
		shared[6] = turn[5];
		syscall(SYS_exit, 6);
	}
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	await(&turn[0], 1);
	char cwd[8] = "";
	int st;
	shared[0] = syscall(SYS_getpid);
	shared[7] = syscall(SYS_getcwd, cwd, sizeof(cwd)) == 2 && cwd[0] == '/' && syscall(SYS_fcntl, 7, F_GETFD) < 0;
	shared[8] = syscall(SYS_wait4, forked, &st, 0, NULL) == forked && st == 6 << 8;
	syscall(SYS_exit, 0);
	return 0;
}

int main(void)
{
	pid_t pids[2], below;
	int st;

	workload_init();
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED && dup2(0, 7) == 7, "set up");
	turn[5] = 55;
	pids[0] = share(own, 0, NULL);
	pids[1] = share(all, CLONE_FS | CLONE_FILES | CLONE_SIGHAND, &below);
	await(&begun, 4);
	signal(SIGUSR1, hit); /* holds for those who share the actions */
	workload_ready();

	CHECK(!kill(below, SIGUSR1) && !kill(pids[1], SIGUSR1), "signal");
	while (hits < 2)
		usleep(1000);
	turn[5] = 66; /* the forked child has its own */
	shared[5] = 1;
	turn[3] = turn[1] = turn[2] = 1;
	turn[0] = 1;
	CHECK(waitpid(pids[0], &st, 0) == pids[0] && st == 0, "first: %x", st);
	CHECK(waitpid(pids[1], &st, 0) == pids[1] && st == 1 << 8, "second: %x", st);
	CHECK(shared[0] == (uint64_t)pids[0] && shared[1] == (uint64_t)pids[1] && shared[3] == (uint64_t)below, "ids");
	CHECK(shared[2] > 0 && shared[6] == 55 && shared[7] == 1 && shared[8] == 1 && shared[4] == 0, "%lu %lu %lu %lu %lu",
	      shared[2], shared[6], shared[7], shared[8], shared[4]);
	workload_pass();
}
