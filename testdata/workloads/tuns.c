/* TUN and TAP devices: a descriptor without one, one with an address, one with two queues of which one rests, a TAP. Called
 * with "own" they are in a network namespace of the program's own, with another one that nobody has open. */
#include "workload.h"
#include <arpa/inet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define LOCAL "10.203.17.1"
#define BEYOND "10.203.17.2"

static int plain;
static char names[4][IFNAMSIZ]; /* of TUN, queues, TAP, lasting */

static int open_tun(int device, int flags)
{
	struct ifreq r = { .ifr_flags = flags };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

	CHECK(fd >= 0, "open");
	if (!names[device][0])
		snprintf(names[device], IFNAMSIZ, "cryo%c%d", "tqal"[device], getpid());
	strcpy(r.ifr_name, names[device]);
	CHECK(ioctl(fd, TUNSETIFF, &r) == 0, "TUNSETIFF %s", r.ifr_name);
	return fd;
}

static struct ifreq ask(int device, unsigned long request)
{
	struct ifreq r = { 0 };

	strcpy(r.ifr_name, names[device]);
	CHECK(ioctl(plain, request, &r) == 0, "ask about %s", r.ifr_name);
	return r;
}

static int attached(int fd, int device)
{
	struct ifreq r = { 0 };

	CHECK(ioctl(fd, TUNGETIFF, &r) == 0 && !strcmp(r.ifr_name, names[device]), "attached to %s", r.ifr_name);
	return (unsigned short)r.ifr_flags;
}

static void configure(int device)
{
	struct ifreq r = { 0 };
	struct sockaddr_in *a = (struct sockaddr_in *)&r.ifr_addr;

	strcpy(r.ifr_name, names[device]);
	a->sin_family = AF_INET;
	inet_pton(AF_INET, LOCAL, &a->sin_addr);
	CHECK(ioctl(plain, SIOCSIFADDR, &r) == 0, "address");
	inet_pton(AF_INET, "255.255.255.0", &a->sin_addr);
	CHECK(ioctl(plain, SIOCSIFNETMASK, &r) == 0, "mask");
	r.ifr_mtu = 1300;
	CHECK(ioctl(plain, SIOCSIFMTU, &r) == 0, "MTU");
	CHECK(ioctl(plain, SIOCGIFFLAGS, &r) == 0, "flags");
	r.ifr_flags |= IFF_UP;
	CHECK(ioctl(plain, SIOCSIFFLAGS, &r) == 0, "up");
}

/* What is sent into the network behind the device comes out of the descriptor, among other things. */
static void pass(int fd)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(9) };
	char buf[2000];

	inet_pton(AF_INET, BEYOND, &a.sin_addr);
	CHECK(sendto(plain, "through the tunnel", 18, 0, (struct sockaddr *)&a, sizeof(a)) == 18, "send");
	for (;;) {
		struct pollfd p = { fd, POLLIN, 0 };
		CHECK(poll(&p, 1, 5000) == 1, "nothing comes out");
		ssize_t n = read(fd, buf, sizeof(buf));
		if (n > 18 && !memcmp(buf + n - 18, "through the tunnel", 18))
			return;
	}
}

int main(int argc, char **argv)
{
	int own = argc > 1 && !strcmp(argv[1], "own");
	int before[3];

	workload_init();
	if (own)
		CHECK(unshare(CLONE_NEWNET) == 0, "unshare");
	plain = socket(AF_INET, SOCK_DGRAM, 0);
	int loose = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	CHECK(loose >= 0, "open");
	int t = open_tun(0, IFF_TUN | IFF_NO_PI), queues[2], tap = open_tun(2, IFF_TAP), headers = 12;
	configure(0);
	for (int i = 0; i < 2; i++)
		queues[i] = open_tun(1, IFF_TUN | IFF_MULTI_QUEUE);
	struct ifreq rest = { .ifr_flags = IFF_DETACH_QUEUE };
	CHECK(ioctl(queues[1], TUNSETQUEUE, &rest) == 0, "rest");
	CHECK(ioctl(tap, TUNSETOWNER, 1234) == 0 && ioctl(tap, TUNSETVNETHDRSZ, &headers) == 0, "TAP");
	if (own) {
		int l = open_tun(3, IFF_TUN);
		CHECK(ioctl(l, TUNSETPERSIST, 1) == 0, "last");
		close(l);
	}
	struct ifreq mac = ask(2, SIOCGIFHWADDR);
	for (int i = 0; i < 3; i++)
		before[i] = ask(i, SIOCGIFINDEX).ifr_ifindex;
	pass(t);

	workload_ready();

	for (int i = 0; i < 3; i++)
		CHECK(ask(i, SIOCGIFINDEX).ifr_ifindex == before[i], "index of %s", names[i]);
	CHECK((attached(t, 0) & (IFF_TUN | IFF_NO_PI)) == (IFF_TUN | IFF_NO_PI), "flags");
	CHECK(!(attached(queues[0], 1) & IFF_DETACH_QUEUE) && attached(queues[1], 1) & IFF_DETACH_QUEUE, "queues");
	CHECK(attached(tap, 2) & IFF_TAP, "TAP");
	struct ifreq now = ask(2, SIOCGIFHWADDR);
	CHECK(!memcmp(mac.ifr_hwaddr.sa_data, now.ifr_hwaddr.sa_data, 6), "hardware address");
	headers = 0;
	CHECK(ioctl(tap, TUNGETVNETHDRSZ, &headers) == 0 && headers == 12, "headers of %d", headers);
	CHECK(ask(0, SIOCGIFMTU).ifr_mtu == 1300, "MTU");
	struct ifreq none = { 0 };
	CHECK(ioctl(loose, TUNGETIFF, &none) < 0 && errno == EBADFD, "the loose one is attached");
	CHECK(fcntl(t, F_GETFL) & O_NONBLOCK && fcntl(loose, F_GETFD) == FD_CLOEXEC, "flags of descriptors");
	pass(t);
	if (own) {
		int l = open_tun(3, IFF_TUN);
		CHECK(attached(l, 3) & IFF_PERSIST, "the lasting one");
	}
	/* What does not last goes with its descriptor. */
	close(t);
	CHECK(if_nametoindex(names[0]) == 0, "%s is there yet", names[0]);
	workload_pass();
}
