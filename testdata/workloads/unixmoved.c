/*
 * Sockets whose files were moved after they had been bound: renamed into place, or linked there. Servers do so to put a
 * new socket in the place of an old one.
 */
#include "unixsock.h"

int main(void)
{
	int renamed, linked, mail, writer, waiting, conn;
	struct stat st;

	workload_init();
	renamed = bound(SOCK_STREAM, "renamed.new");
	linked = bound(SOCK_STREAM, "linked.new");
	mail = bound(SOCK_DGRAM, "mail.new");
	CHECK(!listen(renamed, 4) && !listen(linked, 4), "listen");
	CHECK(!rename("renamed.new", "renamed") && !rename("mail.new", "mail"), "rename");
	CHECK(!link("linked.new", "linked") && !unlink("linked.new"), "link");
	waiting = socket(AF_UNIX, SOCK_STREAM, 0);
	writer = socket(AF_UNIX, SOCK_DGRAM, 0);
	CHECK(!joined(waiting, "renamed") && !joined(writer, "mail") && send(writer, "a", 1, 0) == 1, "connect");

	workload_ready();

	CHECK(named(renamed, "renamed.new") && named(linked, "linked.new") && named(mail, "mail.new"), "names");
	CHECK(stat("renamed.new", &st) && stat("linked.new", &st) && stat("mail.new", &st), "files where they were bound");
	conn = accept(renamed, NULL, NULL);
	CHECK(conn >= 0 && write(waiting, "x", 1) == 1 && reads(conn, "x"), "connection that waits");
	CHECK(send(writer, "b", 1, 0) == 1 && reads(mail, "a") && reads(mail, "b"), "datagrams");
	CHECK(!joined(socket(AF_UNIX, SOCK_STREAM, 0), "renamed") && !joined(socket(AF_UNIX, SOCK_STREAM, 0), "linked"), "connect again");
	CHECK(!joined(socket(AF_UNIX, SOCK_DGRAM, 0), "mail"), "connect again to datagrams");
	workload_pass();
}
