/*
 * A task to run foreign programs in. Each mode does one thing that an interruption could spoil, for as long as the
 * standard input is open, and exits with 0 if nothing was spoilt. It says "ready" when it is at work.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "%s: errno %d (%s)\n", what, errno, strerror(errno));
	exit(1);
}

static void ready(void)
{
	if (write(1, "ready\n", 6) != 6)
		fail("write");
}

/* over says whether the standard input is closed. */
static int over(void)
{
	struct pollfd p = { .fd = 0, .events = POLLIN };
	return poll(&p, 1, 0) > 0;
}

/* Registers: general and vector ones hold known values in a loop without any memory access. */
static int registers(void)
{
#ifdef __x86_64__
	static uint8_t want[512], got[512];
	for (unsigned i = 0; i < sizeof(want); i++)
		want[i] = i * 7 + 1;
	ready();
	do {
		uint64_t bad = 0;
		asm volatile("vmovdqu 0(%1), %%ymm0\n vmovdqu 32(%1), %%ymm1\n vmovdqu 64(%1), %%ymm2\n"
			     "vmovdqu 96(%1), %%ymm7\n vmovdqu 128(%1), %%ymm15\n"
			     "fld1\n"
			     "mov $0x1111111111111111, %%r8\n mov $0x2222222222222222, %%r9\n"
			     "mov $0x3333333333333333, %%r10\n mov $0x4444444444444444, %%r11\n"
			     "mov $0x5555555555555555, %%r12\n mov $0x6666666666666666, %%r13\n"
			     "mov $0x7777777777777777, %%r14\n mov $0x0888888888888888, %%r15\n"
			     "mov $3000000, %%rcx\n"
			     "std\n"
			     "1: dec %%rcx\n jnz 1b\n"
			     "pushfq\n pop %%rdx\n cld\n and $0x400, %%rdx\n xor $0x400, %%rdx\n or %%rdx, %0\n"
			     "mov $0x1111111111111111, %%rdx\n xor %%r8, %%rdx\n or %%rdx, %0\n"
			     "mov $0x2222222222222222, %%rdx\n xor %%r9, %%rdx\n or %%rdx, %0\n"
			     "mov $0x3333333333333333, %%rdx\n xor %%r10, %%rdx\n or %%rdx, %0\n"
			     "mov $0x4444444444444444, %%rdx\n xor %%r11, %%rdx\n or %%rdx, %0\n"
			     "mov $0x5555555555555555, %%rdx\n xor %%r12, %%rdx\n or %%rdx, %0\n"
			     "mov $0x6666666666666666, %%rdx\n xor %%r13, %%rdx\n or %%rdx, %0\n"
			     "mov $0x7777777777777777, %%rdx\n xor %%r14, %%rdx\n or %%rdx, %0\n"
			     "mov $0x0888888888888888, %%rdx\n xor %%r15, %%rdx\n or %%rdx, %0\n"
			     "fstp %%st(0)\n"
			     "vmovdqu %%ymm0, 0(%2)\n vmovdqu %%ymm1, 32(%2)\n vmovdqu %%ymm2, 64(%2)\n"
			     "vmovdqu %%ymm7, 96(%2)\n vmovdqu %%ymm15, 128(%2)\n"
			     : "+a"(bad)
			     : "S"(want), "D"(got)
			     : "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc",
			       "xmm0", "xmm1", "xmm2", "xmm7", "xmm15");
		if (bad || memcmp(want, got, 160)) {
			fprintf(stderr, "registers changed: %llx\n", (unsigned long long)bad);
			return 1;
		}
	} while (!over());
#endif
	return 0;
}

/* A sleep that ends early, or with an error, was not restarted. */
static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int sleeps(const char *how)
{
	const double period = 0.3;
	struct timespec ts = { 0, 300000000 };
	static uint32_t word;
	ready();
	do {
		double start = now();
		long ret;
		if (!strcmp(how, "nanosleep")) {
			ret = syscall(SYS_nanosleep, &ts, NULL);
		} else if (!strcmp(how, "futex")) {
			ret = syscall(SYS_futex, &word, FUTEX_WAIT, 0, &ts, NULL, 0);
			ret = ret < 0 && errno == ETIMEDOUT ? 0 : -1;
		} else {
			ret = syscall(SYS_poll, NULL, 0, 300);
		}
		if (ret)
			fail(how);
		if (now() - start < period) {
			fprintf(stderr, "%s ended after %f s\n", how, now() - start);
			return 1;
		}
	} while (!over());
	return 0;
}

/* Reading is restarted without anybody noticing. */
static int reads(void)
{
	char c;
	ready();
	ssize_t n = read(0, &c, 1);
	if (n < 0)
		fail("read");
	return 0;
}

/* Under seccomp, everything but what the loop needs is deadly. */
static int filtered(int strict)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("no_new_privs");
	ready();
	if (strict) {
		char c;
		if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
			fail("strict");
		while (read(0, &c, 1) > 0)
			;
		syscall(SYS_exit, 0);
	}
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { sizeof(f) / sizeof(f[0]), f };
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog))
		fail("filter");
	char c;
	while (read(0, &c, 1) > 0)
		;
	_exit(0);
}

/* Signal handlers, all of those a program could stop with among them, and an alternate stack. */
static volatile sig_atomic_t hits;
static void handler(int sig) { hits++; }

static int handles(int all)
{
	struct sigaction sa = { .sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK };
	stack_t alt = { .ss_sp = malloc(65536), .ss_size = 65536 };
	stack_t again;
	if (sigaltstack(&alt, NULL))
		fail("sigaltstack");
	for (int s = 1; s < 32; s++)
		if (s != SIGKILL && s != SIGSTOP && (all || s != SIGCONT))
			sigaction(s, &sa, NULL);
	ready();
	reads();
	sigaltstack(NULL, &again);
	if (again.ss_sp != alt.ss_sp || again.ss_flags) {
		fprintf(stderr, "the alternate stack changed\n");
		return 1;
	}
	if (hits) {
		fprintf(stderr, "%d signals arrived\n", (int)hits);
		return 1;
	}
	return 0;
}

/* SIGTRAP is ignored: a forced one would reset that. */
static int ignores(void)
{
	struct sigaction sa;
	signal(SIGTRAP, SIG_IGN);
	ready();
	reads();
	sigaction(SIGTRAP, NULL, &sa);
	if (sa.sa_handler != SIG_IGN) {
		fprintf(stderr, "SIGTRAP is not ignored any more\n");
		return 1;
	}
	return 0;
}

static void *reader(void *arg)
{
	char c;
	if (read(*(int *)arg, &c, 1) < 0)
		fail("read in a thread");
	return NULL;
}

/* Threads, each in a system call. */
static int threads(void)
{
	pthread_t t[8];
	static int fds[2];
	if (pipe(fds))
		fail("pipe");
	for (int i = 0; i < 8; i++)
		pthread_create(&t[i], NULL, reader, &fds[0]);
	ready();
	reads();
	close(fds[1]);
	for (int i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
	return 0;
}

/* While selected, any system call raises SIGSYS, which kills. */
static int dispatches(void)
{
	static volatile char selector;
	if (prctl(59 /* PR_SET_SYSCALL_USER_DISPATCH */, 1, 1, 1, &selector))
		return 77;
	ready();
	do {
		selector = 1; /* block */
		for (volatile int i = 0; i < 3000000; i++)
			;
		selector = 0;
	} while (!over());
	return 0;
}

/* A thread that is in a restartable sequence all the time; another one ends it. */
#if defined(__x86_64__) && __GLIBC_PREREQ(2, 35)
#include <sys/rseq.h>
static volatile int stop;

static void *ender(void *arg)
{
	reads();
	stop = 1;
	return NULL;
}

static int restartable(void)
{
	pthread_t t;
	struct rseq *rs = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
	if (!__rseq_size)
		return 77;
	pthread_create(&t, NULL, ender, NULL);
	ready();
	while (!stop) {
		asm volatile(".pushsection __rseq_cs, \"aw\"\n .balign 32\n"
			     "3: .long 0, 0\n .quad 1f, (2f - 1f), 4f\n .popsection\n"
			     "leaq 3b(%%rip), %%rax\n movq %%rax, %0\n"
			     "1: cmpl $0, %1\n je 1b\n"
			     "2: jmp 5f\n"
			     ".byte 0x0f, 0xb9, 0x3d\n .long 0x53053053\n"
			     "4: \n 5:\n"
			     : "=m"(rs->rseq_cs) : "m"(stop) : "rax", "memory", "cc");
	}
	pthread_join(t, NULL);
	return 0;
}
#else
static int restartable(void) { return 77; }
#endif

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	if (!strcmp(mode, "registers"))
		return registers();
	if (!strcmp(mode, "read"))
		return ready(), reads();
	if (!strcmp(mode, "filter") || !strcmp(mode, "strict"))
		return filtered(mode[0] == 's');
	if (!strcmp(mode, "handlers"))
		return handles(1);
	if (!strcmp(mode, "golike")) /* as the Go runtime does */
		return handles(0);
	if (!strcmp(mode, "ignore"))
		return ignores();
	if (!strcmp(mode, "dispatch"))
		return dispatches();
	if (!strcmp(mode, "rseq"))
		return restartable();
	if (!strcmp(mode, "threads"))
		return threads();
	if (!strcmp(mode, "mdwe")) {
		if (prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0))
			return 77;
		return ready(), reads();
	}
	return sleeps(mode);
}
