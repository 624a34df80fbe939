/* Regular files, directories, devices and deleted files, shared and private descriptors. */
#include "workload.h"

static int hole_kept(int fd)
{
	char b[4096];

	if (pread(fd, b, sizeof(b), 0) != sizeof(b) || b[0] != 'a')
		return 0;
	if (pread(fd, b, sizeof(b), 1 << 20) != sizeof(b) || b[0])
		return 0;
	return pread(fd, b, 1, 2 << 20) == 1 && b[0] == 'z';
}

int main(void)
{
	char b[64];
	struct stat st;

	workload_init();
	umask(027);
	int rw = open("data", O_CREAT | O_RDWR, 0644);
	CHECK(write(rw, "0123456789", 10) == 10 && lseek(rw, 4, SEEK_SET) == 4, "data");
	int shared = dup(rw);
	int app = open("log", O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
	CHECK(write(app, "one\n", 4) == 4, "log");
	int dir = open(".", O_RDONLY | O_DIRECTORY);
	int path = open("data", O_PATH);
	int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY);
	int gone = open("gone", O_CREAT | O_RDWR, 0640);
	memset(b, 'a', sizeof(b));
	for (int i = 0; i < 4096 / 64; i++)
		CHECK(write(gone, b, sizeof(b)) == sizeof(b), "gone");
	CHECK(pwrite(gone, "z", 1, 2 << 20) == 1, "gone");
	CHECK(!unlink("gone"), "unlink");
	int again = open("gone", O_CREAT | O_EXCL | O_RDWR, 0600);
	CHECK(write(again, "a new file of the same name", 27) == 27, "gone again");
	int tmp = open(".", O_TMPFILE | O_RDWR, 0600);
	if (tmp >= 0)
		CHECK(write(tmp, "nameless", 8) == 8, "tmpfile");
	int proc = open("/proc/self/status", O_RDONLY);
	CHECK(proc >= 0, "proc");
	CHECK(!mkdir("cwd", 0755) && !chdir("cwd"), "cwd");

	workload_ready();

	CHECK(read(rw, b, 3) == 3 && !memcmp(b, "456", 3), "offset");
	CHECK(lseek(shared, 0, SEEK_CUR) == 7, "shared offset");
	CHECK(write(app, "two\n", 4) == 4, "append");
	CHECK((fcntl(app, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY), "append flags");
	CHECK(fcntl(app, F_GETFD) == FD_CLOEXEC && fcntl(rw, F_GETFD) == 0, "cloexec");
	CHECK(!fstatat(dir, "log", &st, 0) && st.st_size == 8, "directory");
	CHECK((fcntl(path, F_GETFL) & O_PATH) && !fstatat(path, "", &st, AT_EMPTY_PATH) && st.st_size == 10, "O_PATH");
	CHECK(write(null, "x", 1) == 1 && read(zero, b, 1) == 1 && !b[0], "devices");
	CHECK(hole_kept(gone), "deleted file");
	CHECK(!fstat(gone, &st) && st.st_nlink == 0 && (st.st_mode & 07777) == 0640, "deleted file's inode");
	CHECK(st.st_blocks * 512 < 1 << 20, "hole filled: %ld blocks", (long)st.st_blocks);
	CHECK(pread(again, b, 5, 0) == 5 && !memcmp(b, "a new", 5), "file of the same name");
	CHECK(!fstat(again, &st) && st.st_nlink == 1, "file of the same name: links");
	if (tmp >= 0)
		CHECK(pread(tmp, b, 8, 0) == 8 && !memcmp(b, "nameless", 8), "tmpfile");
	CHECK(read(proc, b, 5) == 5 && !memcmp(b, "Name:", 5), "proc file");
	CHECK(umask(0) == 027, "umask");
	char cwd[PATH_MAX];
	CHECK(getcwd(cwd, sizeof(cwd)) && strstr(cwd, "/cwd"), "cwd %s", cwd);
	workload_pass();
}
