/*
 * Threads with names, ids, signal masks, alternate stacks, thread-local data
 * and vector registers that live across the checkpoint. argv[1]: how many.
 */
#include "workload.h"
#include <pthread.h>
#include <sys/prctl.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

static __thread uint64_t tls;
static pthread_barrier_t built, go;
static int failed;
static long pause_ns;

static void keep_vectors(uint64_t seed)
{
#ifdef __x86_64__
	/* The value stays in a register over the wait: no call in between. */
	__m128i v = _mm_set_epi64x(seed, ~seed), w;
	volatile int *flag = &failed;
	long r;
	/* All together wake up a few thousand times a second, however many they are. */
	struct timespec ts = { 0, pause_ns };
	for (;;) {
		__asm__ volatile("movdqa %[v], %%xmm11\n\t"
				 "syscall\n\t"
				 "movdqa %%xmm11, %[w]"
				 : "=a"(r), [w] "=x"(w)
				 : "a"(SYS_nanosleep), "D"(&ts), "S"(0), [v] "x"(v)
				 : "rcx", "r11", "memory", "xmm11");
		if (_mm_movemask_epi8(_mm_cmpeq_epi8(v, w)) != 0xffff)
			*flag = 1;
		if (!faccessat(workload_dir, "go", F_OK, 0))
			return;
	}
#else
	workload_wait();
#endif
}

static void *body(void *arg)
{
	long n = (long)arg;
	char name[16], got[16];
	sigset_t mask, now;
	stack_t ss = { .ss_sp = malloc(32768), .ss_size = 32768 }, old;
	pid_t tid = syscall(SYS_gettid);

	tls = workload_pattern(n);
	snprintf(name, sizeof(name), "worker-%ld", n);
	prctl(PR_SET_NAME, name);
	sigemptyset(&mask);
	sigaddset(&mask, SIGRTMIN + n % 20);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	sigaltstack(&ss, NULL);
	pthread_barrier_wait(&built);

	keep_vectors(workload_pattern(n));

	prctl(PR_GET_NAME, got);
	pthread_sigmask(SIG_SETMASK, NULL, &now);
	sigaltstack(NULL, &old);
	if (strcmp(name, got) || tls != workload_pattern(n) || syscall(SYS_gettid) != tid ||
	    !sigismember(&now, SIGRTMIN + n % 20) || sigismember(&now, SIGUSR1) ||
	    old.ss_sp != ss.ss_sp || old.ss_size != ss.ss_size)
		failed = 1;
	pthread_barrier_wait(&go);
	return (void *)(n * 3);
}

int main(int argc, char **argv)
{
	long n = argc > 1 ? atol(argv[1]) : 8;
	pthread_t *t = calloc(n, sizeof(*t));
	pthread_attr_t attr;

	workload_init();
	pause_ns = n > 900 ? 900 * 1000 * 1000 : n > 8 ? n * 250 * 1000 : 2000 * 1000;
	pthread_barrier_init(&built, NULL, n + 1);
	pthread_barrier_init(&go, NULL, n + 1);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	for (long i = 0; i < n; i++)
		if (pthread_create(&t[i], &attr, body, (void *)i))
			workload_fail("thread %ld", i);
	pthread_barrier_wait(&built);
	workload_ready();
	pthread_barrier_wait(&go);
	for (long i = 0; i < n; i++) {
		void *r;
		pthread_join(t[i], &r);
		CHECK((long)r == i * 3, "thread %ld", i);
	}
	CHECK(!failed, "a thread lost its state");
	workload_pass();
}
