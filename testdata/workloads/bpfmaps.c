/* BPF maps: a frozen array, a hash, and the same hash through a second descriptor. */
#include "workload.h"
#include <linux/bpf.h>
#include <stddef.h>
#include <sys/syscall.h>

static long bpf(int cmd, union bpf_attr *a)
{
	return syscall(SYS_bpf, cmd, a, sizeof(*a));
}

static int map(int type, const char *name, int max)
{
	union bpf_attr a = { .map_type = type, .key_size = 4, .value_size = 8, .max_entries = max };

	strcpy(a.map_name, name);
	int fd = bpf(BPF_MAP_CREATE, &a);
	CHECK(fd >= 0, "create %s", name);
	return fd;
}

static long put(int fd, uint32_t key, uint64_t value)
{
	return bpf(BPF_MAP_UPDATE_ELEM, &(union bpf_attr){ .map_fd = fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value });
}

static uint64_t get(int fd, uint32_t key)
{
	uint64_t value = 0;

	bpf(BPF_MAP_LOOKUP_ELEM, &(union bpf_attr){ .map_fd = fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value });
	return value;
}

int main(void)
{
	workload_init();
	int array = map(BPF_MAP_TYPE_ARRAY, "an_array", 100), hash = map(BPF_MAP_TYPE_HASH, "a_hash", 1000);
	for (int i = 0; i < 100; i++)
		CHECK(!put(array, i, workload_pattern(i)) && !put(hash, 7 * i, workload_pattern(i)), "put");
	CHECK(!bpf(BPF_MAP_FREEZE, &(union bpf_attr){ .map_fd = array }), "freeze");
	struct bpf_map_info info = {};
	CHECK(!bpf(BPF_OBJ_GET_INFO_BY_FD, &(union bpf_attr){ .info = { hash, sizeof(info), (uintptr_t)&info } }), "info");
	int again = bpf(BPF_MAP_GET_FD_BY_ID, &(union bpf_attr){ .map_id = info.id });
	CHECK(again >= 0, "by id");
	workload_ready();

	for (int i = 0; i < 100; i++)
		CHECK(get(array, i) == workload_pattern(i) && get(hash, 7 * i) == workload_pattern(i), "contents");
	CHECK(put(array, 1, 1) && errno == EPERM, "frozen");
	CHECK(!put(hash, 1, 4711) && get(again, 1) == 4711, "one map");
	workload_pass();
}
