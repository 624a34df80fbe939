/* Files whose names are gone, but which have others: hard links that nobody has opened. */
#include "workload.h"

int main(void)
{
	struct stat held, named;
	char text[16] = "";

	workload_init();
	int fd = open("first", O_CREAT | O_RDWR, 0600), again = open("first", O_RDONLY);
	CHECK(fd >= 0 && again >= 0, "open");
	CHECK(write(fd, "some text", 9) == 9 && lseek(fd, 5, SEEK_SET) == 5, "write");
	CHECK(!link("first", "second") && !unlink("first"), "names");

	workload_ready();

	CHECK(!fstat(fd, &held) && !fstatat(workload_dir, "second", &named, 0), "stat");
	CHECK(held.st_ino == named.st_ino && held.st_dev == named.st_dev, "another file");
	CHECK(faccessat(workload_dir, "first", F_OK, 0) && errno == ENOENT, "the first name");
	CHECK(read(fd, text, 15) == 4 && !strcmp(text, "text"), "read %s", text);
	CHECK(read(again, text, 15) == 9 && !strncmp(text, "some text", 9), "read %s", text);
	workload_pass();
}
