/* Unix sockets with their other end outside: descriptor 3 is half of a pair, and one is connected to the name "server". */
#include "unixsock.h"

int main(void)
{
	int sk;

	workload_init();
	sk = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(!joined(sk, "server") && send(sk, "before", 6, 0) == 6 && write(3, "before", 6) == 6, "outside");
	workload_ready();
	CHECK(send(sk, "after", 5, 0) == 5, "server outside");
	CHECK(write(3, "after", 5) == 5 && reads(3, "answer"), "pair outside");
	workload_pass();
}
