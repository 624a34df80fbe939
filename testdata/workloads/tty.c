/* A job of a shell: it is in front of its terminal, has changed its settings and hears its keys. */
#include "workload.h"
#include <sys/ioctl.h>
#include <termios.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
	interrupted = sig;
}

/* With an argument it opens the terminal once more, by that name. */
int main(int argc, char **argv)
{
	struct termios set, now;

	workload_init();
	for (int fd = 0; fd < 3; fd++)
		CHECK(isatty(fd), "%d", fd);
	CHECK(!tcgetattr(0, &set), "settings");
	set.c_lflag &= ~(ECHO | ICANON);
	set.c_cc[VERASE] = 'e';
	CHECK(!tcsetattr(0, TCSANOW, &set) && !tcgetattr(0, &set), "settings");
	int ctl = argc > 1 ? open(argv[1], O_RDWR | O_NONBLOCK) : dup(0);
	CHECK(ctl >= 0, "once more");
	CHECK(tcgetpgrp(0) == getpgrp(), "in front");
	signal(SIGINT, on_interrupt);
	workload_ready();
	CHECK(!tcgetattr(0, &now) && now.c_lflag == set.c_lflag && now.c_iflag == set.c_iflag && now.c_cc[VERASE] == 'e', "settings %x %x %x %x, were %x %x %x %x", now.c_iflag, now.c_oflag, now.c_cflag,
	      now.c_lflag, set.c_iflag, set.c_oflag, set.c_cflag, set.c_lflag);
	CHECK(tcgetpgrp(0) == getpgrp() && tcgetpgrp(ctl) == getpgrp(), "in front");
	CHECK(!!(fcntl(ctl, F_GETFL) & O_NONBLOCK) == (argc > 1) && !(fcntl(0, F_GETFL) & O_NONBLOCK), "flags");
	workload_write("awake", "");
	while (!interrupted)
		usleep(3000); /* for as long as the harness has patience */
	CHECK(dprintf(ctl, "from the job\n") == 13 && write(1, "and its output\n", 15) == 15, "output");
	workload_pass();
}
