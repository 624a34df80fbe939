/* Patterned memory, argv[1] MiB, optionally (argv[2] = "huge") in transparent huge pages. */
#include "workload.h"

int main(int argc, char **argv)
{
	size_t len = (size_t)(argc > 1 ? atol(argv[1]) : 64) << 20;

	workload_init();
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	madvise(p, len, argc > 2 && !strcmp(argv[2], "huge") ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (argc > 2 && !strcmp(argv[2], "zero"))
		memset(p, 0, len);
	else
		workload_fill(p, len, 5);
	workload_ready();
	if (argc > 2 && !strcmp(argv[2], "zero")) {
		for (size_t i = 0; i < len; i += 8)
			CHECK(!*(uint64_t *)(p + i), "at %zx", i);
	} else {
		CHECK(workload_verify(p, len, 5), "pattern");
	}
	workload_pass();
}
