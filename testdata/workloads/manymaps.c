/* Many mappings with a written page in each, kept apart by protection; argv[1]: how many. */
#include "workload.h"

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 500;

	workload_init();
	char *base = mmap(NULL, (size_t)n * 2 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(base != MAP_FAILED, "reserve");
	for (int i = 0; i < n; i++) {
		char *p = base + (size_t)i * 2 * 4096;
		CHECK(!mprotect(p, 4096, PROT_READ | PROT_WRITE), "mapping %d", i);
		workload_fill(p, 4096, i * 11);
	}
	workload_ready();
	for (int i = 0; i < n; i++)
		CHECK(workload_verify(base + (size_t)i * 2 * 4096, 4096, i * 11), "mapping %d", i);
	workload_pass();
}
