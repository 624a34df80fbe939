/*
 * A flat tree of idle children; argv[1]: how many. argv[2]: descriptors each opens for itself, ten at a time: a pipe and a
 * pair of sockets with a byte in each, an eventfd, /dev/null, and the same file four times.
 */
#include "workload.h"
#include <sys/eventfd.h>
#include <sys/socket.h>

struct ten {
	int pipe[2], pair[2], event, null, file[4];
};

static void open_ten(struct ten *t, int i)
{
	char c = (char)i;

	CHECK(!pipe(t->pipe) && write(t->pipe[1], &c, 1) == 1, "pipe of child %d", i);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, t->pair) && write(t->pair[1], &c, 1) == 1, "sockets of child %d", i);
	CHECK((t->event = eventfd(i, 0)) >= 0 && (t->null = open("/dev/null", O_RDWR)) >= 0, "event of child %d", i);
	for (int k = 0; k < 4; k++)
		CHECK((t->file[k] = open("data", O_RDONLY)) >= 0 && lseek(t->file[k], i + k, SEEK_SET) == i + k, "file of child %d", i);
}

static int check_ten(struct ten *t, int i)
{
	uint64_t count = 0;
	char c, d;

	if (read(t->pipe[0], &c, 1) != 1 || read(t->pair[0], &d, 1) != 1 || c != (char)i || d != (char)i)
		return 0;
	if ((i && (read(t->event, &count, 8) != 8 || count != (uint64_t)i)) || write(t->null, &c, 1) != 1)
		return 0;
	for (int k = 0; k < 4; k++)
		if (lseek(t->file[k], 0, SEEK_CUR) != i + k)
			return 0;
	return 1;
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 100, tens = argc > 2 ? atoi(argv[2]) / 10 : 0, st;
	int done[2];
	struct ten *t = calloc(tens, sizeof(*t));
	sigset_t set;

	workload_init();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	st = open("data", O_CREAT | O_RDWR, 0600);
	CHECK(st >= 0 && !ftruncate(st, n + 4) && !close(st) && !pipe(done), "data");
	for (int i = 0; i < n; i++) {
		pid_t p = fork();
		CHECK(p >= 0, "fork %d", i);
		if (!p) {
			int sig;
			for (int k = 0; k < tens; k++)
				open_ten(&t[k], i);
			CHECK(write(done[1], "", 1) == 1 && !close(done[0]) && !close(done[1]), "child %d", i);
			sigwait(&set, &sig);
			for (int k = 0; k < tens; k++)
				if (!check_ten(&t[k], i))
					_exit(102);
			_exit(sig == SIGUSR1 ? i % 100 : 101);
		}
	}
	for (int i = 0; i < n; i++) {
		char c;
		CHECK(read(done[0], &c, 1) == 1, "child %d", i);
	}
	close(done[0]);
	close(done[1]);
	workload_ready();
	kill(0, SIGUSR1);
	int sum = 0, want = 0;
	for (int i = 0; i < n; i++) {
		CHECK(wait(&st) > 0 && WIFEXITED(st) && WEXITSTATUS(st) < 101, "child %d: %x", i, st);
		sum += WEXITSTATUS(st);
		want += i % 100;
	}
	CHECK(sum == want, "sum of exit statuses %d, not %d", sum, want);
	workload_pass();
}
