/* The smallest workload: nothing but a process, its memory and its identity. */
#include "workload.h"

static char data[3 * 4096] = "initialised";
static char bss[5 * 4096];

int main(int argc, char **argv)
{
	workload_init();
	char *heap = malloc(1 << 20);
	workload_fill(heap, 1 << 20, 1);
	memset(data + 20, 7, sizeof(data) - 20);
	memset(bss, 9, sizeof(bss));
	pid_t pid = getpid(), sid = getsid(0), pgid = getpgid(0);

	workload_ready();

	CHECK(getpid() == pid && syscall(SYS_getpid) == pid, "pid");
	CHECK(getsid(0) == sid && getpgid(0) == pgid, "session or group");
	CHECK(workload_verify(heap, 1 << 20, 1), "heap");
	CHECK(!strcmp(data, "initialised") && data[4096] == 7, "data");
	CHECK(bss[4 * 4096] == 9, "bss");
	CHECK(argc >= 1 && strstr(argv[0], "idle"), "argv %s", argv[0]);
	workload_pass();
}
