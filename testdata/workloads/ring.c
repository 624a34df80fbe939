/*
 * A ring of processes joined by pipes: a token goes round before and after,
 * and a queue of bytes lies in every pipe meanwhile. argv[1]: how many.
 */
#include "workload.h"

static void copy_token(int from, int to, int id)
{
	char queued[3];
	uint32_t token;

	if (read(from, queued, 3) != 3 || queued[0] != 'q' || queued[1] != (char)id)
		_exit(10);
	if (read(from, &token, 4) != 4)
		_exit(11);
	token++;
	if (write(to, &token, 4) != 4)
		_exit(12);
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 16;
	int first[2], prev[2], next[2];
	pid_t *pids = calloc(n, sizeof(pid_t));

	workload_init();
	CHECK(!pipe(first), "pipe");
	memcpy(prev, first, sizeof(prev));
	for (int i = 0; i < n; i++) {
		CHECK(!pipe(next), "pipe");
		char queued[3] = { 'q', (char)i, 0 };
		CHECK(write(prev[1], queued, 3) == 3, "queue");
		pids[i] = fork();
		CHECK(pids[i] >= 0, "fork");
		if (!pids[i]) {
			close(prev[1]);
			copy_token(prev[0], next[1], i);
			_exit(i % 50);
		}
		close(prev[0]);
		if (i)
			close(prev[1]);
		memcpy(prev, next, sizeof(prev));
	}
	workload_ready();

	uint32_t token = 1000;
	CHECK(write(first[1], &token, 4) == 4, "send");
	CHECK(read(prev[0], &token, 4) == 4, "receive");
	CHECK(token == 1000u + n, "token %u", token);
	for (int i = 0; i < n; i++) {
		int st;
		CHECK(waitpid(pids[i], &st, 0) == pids[i], "wait for %d", i);
		CHECK(WIFEXITED(st) && WEXITSTATUS(st) == i % 50, "status of %d: %x", i, st);
	}
	workload_pass();
}
