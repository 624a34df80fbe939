/* Patterned memory, argv[1] MiB, optionally (argv[2]) "huge": in transparent huge pages, "zero": written zeros, "text": words that
   can be compressed. */
#include "workload.h"

/* text writes numbered lines of words, or says whether they are there. */
static int text(char *p, size_t len, int write)
{
	static const char *words[] = { "checkpoint", "restore", "memory", "task", "page", "of", "the", "a" };
	uint32_t x = 1;
	char line[256];

	for (size_t at = 0, n = 0; at < len; n++) {
		size_t used = snprintf(line, sizeof(line), "%zu:", n);
		for (int i = 0; i < 8; i++) {
			x = x * 1664525 + 1013904223;
			used += snprintf(line + used, sizeof(line) - used, " %s-%u", words[x >> 29], x >> 20 & 511);
		}
		line[used++] = '\n';
		if (used > len - at)
			used = len - at;
		if (write)
			memcpy(p + at, line, used);
		else if (memcmp(p + at, line, used))
			return 0;
		at += used;
	}
	return 1;
}

int main(int argc, char **argv)
{
	size_t len = (size_t)(argc > 1 ? atol(argv[1]) : 64) << 20;

	workload_init();
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(p != MAP_FAILED, "mmap");
	madvise(p, len, argc > 2 && !strcmp(argv[2], "huge") ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (argc > 2 && !strcmp(argv[2], "zero"))
		memset(p, 0, len);
	else if (argc > 2 && !strcmp(argv[2], "text"))
		text(p, len, 1);
	else
		workload_fill(p, len, 5);
	workload_ready();
	if (argc > 2 && !strcmp(argv[2], "zero")) {
		for (size_t i = 0; i < len; i += 8)
			CHECK(!*(uint64_t *)(p + i), "at %zx", i);
	} else if (argc > 2 && !strcmp(argv[2], "text")) {
		CHECK(text(p, len, 0), "text");
	} else {
		CHECK(workload_verify(p, len, 5), "pattern");
	}
	workload_pass();
}
