/*
 * The protocol between a workload and the harness (internal/e2e).
 *
 * A workload is started in a directory of its own. It builds some state, calls
 * workload_ready(), which creates the file "ready" and blocks until the file
 * "go" appears (the harness makes it after the restore), and then checks that
 * its state is what it was. It ends with workload_pass() or workload_fail():
 * the verdict is the file "verdict" and the exit status.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int workload_dir = -1;

static void workload_write(const char *name, const char *text)
{
	char tmp[64];

	snprintf(tmp, sizeof(tmp), "%s.tmp", name);
	int fd = openat(workload_dir, tmp, O_CREAT | O_TRUNC | O_WRONLY, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd) ||
	    renameat(workload_dir, tmp, workload_dir, name))
		_exit(3);
}

/* Called first, while the current directory is the workload's own. */
static void workload_init(void)
{
	int fd = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);

	/* Far from the descriptors a workload makes on purpose. */
	workload_dir = fcntl(fd, F_DUPFD_CLOEXEC, 900);
	if (workload_dir < 0)
		_exit(3);
	close(fd);
}

static void __attribute__((noreturn, unused, format(printf, 1, 2))) workload_fail(const char *fmt, ...)
{
	char text[1024];
	int saved = errno;
	va_list ap;

	strcpy(text, "FAIL: ");
	va_start(ap, fmt);
	vsnprintf(text + 6, sizeof(text) - 64, fmt, ap);
	va_end(ap);
	snprintf(text + strlen(text), 64, " (errno %d)\n", saved);
	workload_write("verdict", text);
	_exit(1);
}

static void __attribute__((noreturn, unused)) workload_pass(void)
{
	workload_write("verdict", "PASS\n");
	_exit(0);
}

/* For what this kernel has not: called before workload_ready. */
#define SKIP_UNLESS(cond, what)                                                   \
	do {                                                                      \
		if (!(cond)) {                                                    \
			workload_write("verdict", "SKIP: " what);                 \
			_exit(0);                                                 \
		}                                                                 \
	} while (0)

#define CHECK(cond, fmt, ...)                                                     \
	do {                                                                      \
		if (!(cond))                                                      \
			workload_fail("%s: " fmt, #cond __VA_OPT__(,) __VA_ARGS__); \
	} while (0)

/*
 * The wait itself keeps no descriptor and no state that could matter to a
 * workload: it polls for the file with nanosleep.
 */
static void __attribute__((unused)) workload_wait(void)
{
	struct timespec ts = { 0, 3 * 1000 * 1000 };

	while (faccessat(workload_dir, "go", F_OK, 0))
		nanosleep(&ts, NULL);
}

static void __attribute__((unused)) workload_ready(void)
{
	char text[32];

	snprintf(text, sizeof(text), "%d\n", getpid());
	workload_write("ready", text);
	workload_wait();
}

/* A cheap generator: patterned memory that is checked without being kept twice. */
static uint64_t __attribute__((unused)) workload_pattern(uint64_t i)
{
	i = (i + 1) * 0x9e3779b97f4a7c15ull;
	i ^= i >> 29;
	return i * 0xbf58476d1ce4e5b9ull;
}

static void __attribute__((unused)) workload_fill(void *p, size_t len, uint64_t seed)
{
	uint64_t *w = p;

	for (size_t i = 0; i < len / 8; i++)
		w[i] = workload_pattern(seed + i);
}

static int __attribute__((unused)) workload_verify(const void *p, size_t len, uint64_t seed)
{
	const uint64_t *w = p;

	for (size_t i = 0; i < len / 8; i++)
		if (w[i] != workload_pattern(seed + i))
			return 0;
	return 1;
}

#endif
