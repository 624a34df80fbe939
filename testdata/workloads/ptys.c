/* Pseudo terminals whose both ends are in the tree: sessions, queues, modes, closed and hung-up ends. */
#include "workload.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

/* Numbers that nobody takes who asks for the lowest free one while the tree is away. */
enum { BELOW = 24 };

struct pair {
	int master, slave;
	char name[32];
};

static int open_master(void)
{
	int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY), unlock = 0;

	CHECK(fd >= 0 && !ioctl(fd, TIOCSPTLCK, &unlock), "master");
	return fd;
}

static struct pair open_pair(void)
{
	struct pair p = { .master = open_master() };
	int n;

	CHECK(!ioctl(p.master, TIOCGPTN, &n), "number");
	snprintf(p.name, sizeof(p.name), "/dev/pts/%d", n);
	p.slave = open(p.name, O_RDWR | O_NOCTTY);
	CHECK(p.slave >= 0, "%s", p.name);
	return p;
}

static void set_raw(int fd)
{
	struct termios t;

	CHECK(!tcgetattr(fd, &t), "settings");
	cfmakeraw(&t);
	CHECK(!tcsetattr(fd, TCSANOW, &t), "settings");
}

/* What a program wrote is on its way for a moment. */
static void await(int fd, short what)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	while (poll(&p, 1, 1000) == 1 && !(p.revents & what))
		;
	CHECK(p.revents & what, "%x fd %d", p.revents, fd);
}

static void expect(int fd, const char *text)
{
	char buf[256];
	ssize_t n = 0;

	await(fd, POLLIN);
	n = read(fd, buf, sizeof(buf) - 1);
	buf[n > 0 ? n : 0] = 0;
	CHECK(n == (ssize_t)strlen(text) && !memcmp(buf, text, n), "%zd bytes \"%s\" in place of \"%s\"", n, buf, text);
}

static void put(int fd, const char *text)
{
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write");
}

/* The leader of a session, its terminal open as /dev/tty alone, and a job of its in the foreground. */
static pid_t start_session(struct pair *p, int told)
{
	pid_t leader = fork();

	if (leader)
		return leader;
	CHECK(setsid() > 0 && !ioctl(p->slave, TIOCSCTTY, 0), "session");
	int ctl = open("/dev/tty", O_RDWR);
	for (int fd = 3; fd < ctl; fd++)
		if (fd != told)
			close(fd);
	pid_t job = fork();
	if (!job) {
		signal(SIGTTOU, SIG_IGN);
		CHECK(!setpgid(0, 0) && !tcsetpgrp(ctl, getpid()), "foreground");
		CHECK(write(told, "j", 1) == 1, "told");
		workload_wait();
		CHECK(tcgetpgrp(ctl) == getpid() && tcgetsid(ctl) == getppid(), "foreground");
		put(ctl, "job");
		_exit(0);
	}
	int status;
	CHECK(waitpid(job, &status, 0) == job && !status, "job %x", status);
	CHECK(tcgetsid(ctl) == getpid(), "session");
	_exit(0);
}

int main(void)
{
	int fill[BELOW], told[2], on = 1, packet = 0, locked = 0, status;
	char byte;

	workload_init();
	for (int i = 0; i < BELOW; i++)
		fill[i] = open_master();
	CHECK(!pipe(told), "pipe");
	struct pair session = open_pair(); /* the others are not to be inherited */
	pid_t leader = start_session(&session, told[1]);
	CHECK(read(told[0], &byte, 1) == 1, "the job");
	struct pair lines = open_pair(), modes = open_pair(), closed = open_pair(), hung = open_pair();
	for (int i = 0; i < BELOW; i++)
		close(fill[i]);

	struct termios t;
	CHECK(!tcgetattr(lines.slave, &t), "settings");
	t.c_lflag &= ~ECHO;
	CHECK(!tcsetattr(lines.slave, TCSANOW, &t), "settings");
	put(lines.master, "one\ntwo\nthr");
	put(lines.slave, "out\n"); /* output processing makes it \r\n */
	await(lines.slave, POLLIN);
	await(lines.master, POLLIN);

	struct winsize size = { .ws_row = 33, .ws_col = 77 }, have;
	set_raw(modes.slave);
	CHECK(!ioctl(modes.slave, TIOCSWINSZ, &size) && !ioctl(modes.master, TIOCPKT, &on), "modes");
	CHECK(!ioctl(modes.master, TIOCSPTLCK, &on) && !ioctl(modes.slave, TIOCEXCL), "modes");
	CHECK(!fcntl(modes.slave, F_SETFL, O_NONBLOCK), "flags");
	put(modes.master, "raw \003\004");
	await(modes.slave, POLLIN);

	set_raw(closed.slave);
	put(closed.slave, "last words");
	await(closed.master, POLLIN);
	close(closed.slave);
	await(closed.master, POLLHUP);
	close(hung.master);

	workload_ready();

	CHECK(waitpid(leader, &status, 0) == leader && !status, "leader %x", status);
	expect(session.master, "job");
	expect(lines.slave, "one\n");
	put(lines.master, "ee\n");
	expect(lines.slave, "two\n");
	expect(lines.slave, "three\n");
	expect(lines.master, "out\r\n");

	CHECK(!ioctl(modes.master, TIOCGWINSZ, &have) && have.ws_row == 33 && have.ws_col == 77, "size");
	CHECK(!ioctl(modes.master, TIOCGPKT, &packet) && packet && !ioctl(modes.master, TIOCGPTLCK, &locked) && locked, "modes");
	CHECK(!ioctl(modes.slave, TIOCGEXCL, &on) && on && fcntl(modes.slave, F_GETFL) & O_NONBLOCK, "modes");
	expect(modes.slave, "raw \003\004");

	expect(closed.master, "last words");
	CHECK(read(closed.master, &byte, 1) < 0 && errno == EIO, "the end");
	CHECK(read(hung.slave, &byte, 1) == 0, "hung up");
	CHECK(tcgetattr(hung.slave, &t) && errno == EIO, "hung up");
	workload_pass();
}
