/* SysV shared memory: a segment that others can still find, one that is removed already, and a child that has both. */
#include "workload.h"
#include <sys/shm.h>

#define LEN (10 * 4096 + 100)

static int segment(char **at, uint64_t seed)
{
	int id = shmget(IPC_PRIVATE, LEN, IPC_CREAT | 0640);

	CHECK(id >= 0, "shmget");
	*at = shmat(id, NULL, 0);
	CHECK(*at != (void *)-1, "shmat");
	workload_fill(*at + 4096, 2 * 4096, seed);
	return id;
}

static int same(int id, int removed)
{
	struct shmid_ds d;

	return !shmctl(id, IPC_STAT, &d) && d.shm_segsz == LEN && (d.shm_perm.mode & 0777) == 0640 &&
	       !(d.shm_perm.mode & SHM_DEST) == !removed;
}

int main(void)
{
	char *kept, *removed;
	int st;

	workload_init();
	int id = segment(&kept, 1), gone = segment(&removed, 2);
	char *again = shmat(gone, NULL, SHM_RDONLY);
	CHECK(again != (void *)-1 && !shmctl(gone, IPC_RMID, NULL), "shmctl");

	pid_t child = fork();
	if (!child) {
		while (*(volatile uint64_t *)removed != 4242)
			usleep(1000);
		*(volatile uint64_t *)kept = 4343;
		_exit(workload_verify(removed + 4096, 2 * 4096, 2) ? 33 : 1);
	}
	workload_ready();

	CHECK(workload_verify(kept + 4096, 2 * 4096, 1) && workload_verify(removed + 4096, 2 * 4096, 2), "contents");
	CHECK(!kept[0] && !removed[5 * 4096], "what was never written");
	CHECK(same(id, 0) && same(gone, 1), "segments");
	*(volatile uint64_t *)removed = 4242;
	CHECK(*(volatile uint64_t *)again == 4242, "second attachment");
	CHECK(waitpid(child, &st, 0) == child && WEXITSTATUS(st) == 33, "child: %x", st);
	CHECK(*(volatile uint64_t *)kept == 4343, "shared with the child");
	CHECK(!shmdt(again) && !shmdt(removed), "shmdt");
	/* The child's memory may outlive it for a moment, where somebody reads of it in /proc. */
	for (int i = 0; i < 5000 && !shmctl(gone, IPC_STAT, &(struct shmid_ds){}); i++)
		usleep(1000);
	CHECK(shmctl(gone, IPC_STAT, &(struct shmid_ds){}) && errno == EINVAL, "it goes with the last");
	CHECK(!shmctl(id, IPC_RMID, NULL), "remove");
	workload_pass();
}
