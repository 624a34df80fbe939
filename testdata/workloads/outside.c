/* What stays outside of a dump: a pipe as standard output, a file given by descriptor 3; and a pipe of its own, with
 * ends opened once more and another size. With an argument, a pipe in packet mode, which criu cannot dump. */
#include "workload.h"

int main(int argc, char **argv)
{
	char b[8192], path[64];
	int p[2], packet[2];

	workload_init();
	CHECK(write(1, "before\n", 7) == 7, "standard output");
	CHECK(read(3, b, 2) == 2, "file");
	CHECK(!pipe(p) && fcntl(p[0], F_SETPIPE_SZ, 1 << 18) == 1 << 18, "pipe");
	memset(b, 'p', sizeof(b));
	for (int i = 0; i < 20; i++)
		CHECK(write(p[1], b, sizeof(b)) == sizeof(b), "fill");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", p[0]);
	int both = open(path, O_RDWR | O_NONBLOCK), more = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(both >= 0 && more >= 0, "once more");
	if (argc > 1)
		CHECK(!pipe2(packet, O_DIRECT) && write(packet[1], "one", 3) == 3, "%s", argv[1]);
	workload_ready();
	CHECK(write(1, "after\n", 6) == 6, "standard output");
	CHECK(read(3, b, 1) == 1 && b[0] == *b, "file");
	CHECK(fcntl(p[0], F_GETPIPE_SZ) == 1 << 18, "size %d", fcntl(p[0], F_GETPIPE_SZ));
	for (int i = 0; i < 20; i++)
		CHECK(read(i % 2 ? more : p[0], b, sizeof(b)) == sizeof(b) && b[0] == 'p' && b[8191] == 'p', "contents");
	CHECK((fcntl(both, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK), "flags");
	CHECK(fcntl(more, F_GETFD) == FD_CLOEXEC && !(fcntl(p[0], F_GETFL) & O_NONBLOCK), "flags");
	CHECK(write(both, "x", 1) == 1 && read(more, b, 8) == 1 && b[0] == 'x', "one pipe");
	if (argc == 1)
		workload_pass();
	CHECK(fcntl(packet[1], F_GETFL) & O_DIRECT, "packet mode");
	CHECK(read(packet[0], b, 100) == 3, "first packet");
	CHECK(write(packet[1], "two", 3) == 3 && write(packet[1], "three", 5) == 5, "packets");
	CHECK(read(packet[0], b, 100) == 3 && read(packet[0], b, 100) == 5, "packets");
	workload_pass();
}
