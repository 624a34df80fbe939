/* argv[1] MiB shared copy-on-write with argv[2] children: after the restore still one copy (PSS tells). */
#include "workload.h"

static long smaps_kb(const char *field)
{
	char line[256];
	long kb = -1;
	FILE *f = fopen("/proc/self/smaps_rollup", "r");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, field, strlen(field)))
			kb = atol(line + strlen(field));
	if (f)
		fclose(f);
	return kb;
}

int main(int argc, char **argv)
{
	size_t len = (size_t)(argc > 1 ? atol(argv[1]) : 32) << 20;
	int n = argc > 2 ? atoi(argv[2]) : 4, st;

	workload_init();
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	madvise(p, len, MADV_NOHUGEPAGE);
	workload_fill(p, len, 3);
	for (int i = 0; i < n; i++) {
		pid_t child = fork();
		CHECK(child >= 0, "fork");
		if (!child) {
			/* Each child owns one page; all else is shared with the parent. */
			workload_fill(p + 4096 * i, 4096, 5000 + i);
			workload_wait();
			int ok = workload_verify(p + 4096 * i, 4096, 5000 + i) &&
				 workload_verify(p + 4096 * (i + 1), len - 4096 * (i + 1), 3 + 512 * (i + 1));
			_exit(ok ? 0 : 1);
		}
	}
	workload_ready();
	long pss = smaps_kb("Pss:"), rss = smaps_kb("Rss:");
	for (int i = 0; i < n; i++)
		CHECK(wait(&st) > 0 && !st, "child: %x", st);
	CHECK(workload_verify(p, len, 3), "parent");
	CHECK(pss > 0 && pss < rss / 2, "not shared any more: PSS %ld of RSS %ld KiB", pss, rss);
	workload_pass();
}
