/*
 * A task that asks the service at the socket argv[1] to dump it into the directory argv[2], and gets the answer when it is
 * restored: the only state it has is the connection it waits on. With argv[3] it is let run on and is answered at once.
 */
#include "workload.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	char answer[512];

	workload_init();
	int images = open(argv[2], O_RDONLY | O_DIRECTORY);
	CHECK(images >= 0 && images < 0x80, "images");
	int sk = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	strncpy(addr.sun_path, argv[1], sizeof(addr.sun_path) - 1);
	CHECK(!connect(sk, (struct sockaddr *)&addr, sizeof(addr)), "connect");

	/* criu_req{type: DUMP, opts: {images_dir_fd, leave_running, log_level: 4, log_file: "dump.log"}} */
	char request[] = "\x08\x01\x12\x10\x08?\x18?\x48\x04\x52\x08" "dump.log";
	request[5] = images;
	request[7] = argc > 3;
	CHECK(send(sk, request, sizeof(request) - 1, 0) == sizeof(request) - 1, "send");

	ssize_t n = recv(sk, answer, sizeof(answer), 0);
	/* criu_resp{type: DUMP, success: true, dump: {restored}} */
	char want[] = "\x08\x01\x10\x01\x1a\x02\x08?";
	want[7] = argc <= 3;
	CHECK(n == sizeof(want) - 1 && !memcmp(answer, want, n), "answer of %zd bytes: %.*s", n, (int)n, answer);
	CHECK(recv(sk, answer, sizeof(answer), 0) == 0, "the end");
	workload_pass();
}
