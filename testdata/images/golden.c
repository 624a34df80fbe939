// Holds a little of much: a thread, a child, a full pipe, a socket pair with a queued message, an open file, an
// unlinked file, shared anonymous memory, SysV memory, a message queue and semaphores, an eventfd and timers.
// Its dump by criu 4.2 is the golden image set; run it again to make a new one.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void *sleeper(void *arg) { for (;;) pause(); return arg; }

static void must(int ok, const char *what)
{
	if (!ok) { perror(what); exit(1); }
}

int main(void)
{
	int p[2], s[2], fd, ep;
	pthread_t t;
	struct { long type; char text[11]; } m = { 1, "hello queue" };
	struct epoll_event ev = { .events = EPOLLIN };
	struct itimerval it = { { 100000, 0 }, { 100000, 0 } };
	timer_t tm;
	struct sigevent se = { .sigev_notify = SIGEV_NONE };

	close_range(3, ~0U, 0);
	must(!pipe(p), "pipe");
	must(write(p[1], "data in the pipe", 16) == 16, "write");
	must(!socketpair(AF_UNIX, SOCK_DGRAM, 0, s), "socketpair");
	must(write(s[0], "one packet", 10) == 10, "write");
	must((fd = open("ghost", O_RDWR | O_CREAT, 0600)) >= 0, "open");
	must(write(fd, "ghost content\n", 14) == 14, "write");
	must(!unlink("ghost"), "unlink");
	must(open("regular", O_RDONLY | O_CREAT, 0600) >= 0, "open");
	must(open("/dev/null", O_RDWR) >= 0, "open");
	int e = eventfd(7, EFD_NONBLOCK);
	must((ep = epoll_create1(0)) >= 0 && !epoll_ctl(ep, EPOLL_CTL_ADD, e, &ev), "epoll");
	char *sh = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(sh + 4096, "shared");
	if (getenv("GOLDEN_IPC")) {
		int q = msgget(IPC_PRIVATE, 0600), id = shmget(IPC_PRIVATE, 5000, 0600), sem = semget(IPC_PRIVATE, 3, 0600);
		must(q >= 0 && !msgsnd(q, &m, sizeof(m.text), 0), "msgsnd");
		m.type = 2; m.text[0] = 'J';
		must(!msgsnd(q, &m, 5, 0), "msgsnd");
		char *a = shmat(id, 0, 0);
		must(a != (void *)-1, "shmat");
		strcpy(a, "sysv");
		must(sem >= 0 && !semctl(sem, 1, SETVAL, 5), "semctl");
	}
	setitimer(ITIMER_REAL, &it, 0);
	must(!timer_create(CLOCK_MONOTONIC, &se, &tm), "timer_create");
	must(!pthread_create(&t, 0, sleeper, 0), "pthread_create");
	signal(SIGUSR1, SIG_IGN);
	if (fork() == 0)
		for (;;) pause();
	printf("ready\n");
	fflush(stdout);
	for (;;) pause();
}
