/*
 * SysV shared memory: a segment that others can still find, one that is removed already, and a child that has both;
 * and one of which the middle has been unmapped.
 */
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

static int attachments(int id)
{
	struct shmid_ds d;

	CHECK(!shmctl(id, IPC_STAT, &d), "stat");
	return d.shm_nattch;
}

int main(void)
{
	char *kept, *removed, *parts;
	int st;

	workload_init();
	int id = segment(&kept, 1), gone = segment(&removed, 2);
	char *again = shmat(gone, NULL, SHM_RDONLY);
	CHECK(again != (void *)-1 && !shmctl(gone, IPC_RMID, NULL), "shmctl");

	int cut = segment(&parts, 3);
	workload_fill(parts + 8 * 4096, 2 * 4096, 4);
	CHECK(!munmap(parts + 2 * 4096, 6 * 4096) && !mprotect(parts + 9 * 4096, 4096, PROT_READ), "unmap");
	int pieces = attachments(cut);

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
	CHECK(same(id, 0) && same(gone, 1) && same(cut, 0), "segments");
	CHECK(workload_verify(parts + 4096, 4096, 3) && workload_verify(parts + 8 * 4096, 2 * 4096, 4), "contents of parts");
	CHECK(attachments(cut) == 2 * pieces, "%d pieces in two tasks, attached %d times", pieces, attachments(cut));
	CHECK(parts == mmap(parts, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), "unmap a piece");
	char *all = shmat(cut, NULL, SHM_RDONLY);
	CHECK(all != (void *)-1 && workload_verify(all + 4096, 2 * 4096, 3) && !shmdt(all), "contents of the whole");
	CHECK(!shmctl(cut, IPC_RMID, NULL), "remove");
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
