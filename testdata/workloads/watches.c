/* inotify watches with gaps in their numbers, of a directory, a file, a hard link and a deleted file; fanotify marks. */
#include "workload.h"
#include <sys/fanotify.h>
#include <sys/inotify.h>

static int events(int fd, int wd, uint32_t mask)
{
	char buf[4096] __attribute__((aligned(8)));
	ssize_t n = read(fd, buf, sizeof(buf));
	int met = 0;

	for (char *p = buf; n > 0 && p < buf + n; p += sizeof(struct inotify_event) + ((struct inotify_event *)p)->len) {
		struct inotify_event *e = (void *)p;
		met += e->wd == wd && e->mask == mask;
	}
	return met;
}

static void touch(const char *name)
{
	int fd = open(name, O_CREAT | O_RDWR, 0644);

	CHECK(fd >= 0 && write(fd, "x", 1) == 1 && !close(fd), "%s", name);
}

static int watch(int fd, const char *path, uint32_t mask)
{
	int wd = inotify_add_watch(fd, path, mask);

	CHECK(wd > 0, "watch %s", path);
	return wd;
}

int main(void)
{
	char buf[4096];

	workload_init();
	CHECK(!mkdir("dir", 0755), "mkdir");
	touch("file"), touch("linked"), touch("gone");
	CHECK(!link("linked", "other name"), "link");
	int ino = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), idle = inotify_init1(0);
	CHECK(ino >= 0 && idle >= 0, "inotify_init1");
	int dir = watch(ino, "dir", IN_CREATE | IN_ONLYDIR);
	CHECK(!inotify_rm_watch(ino, watch(ino, ".", IN_CREATE)), "remove");
	int file = watch(ino, "file", IN_ALL_EVENTS), linked = watch(ino, "linked", IN_OPEN | IN_ONESHOT);
	int gone = open("gone", O_RDWR);
	int lost = watch(ino, "gone", IN_MODIFY);
	CHECK(!unlink("gone"), "unlink");
	while (read(ino, buf, sizeof(buf)) > 0) /* IN_IGNORED of what was removed */
		;

	int fan = fanotify_init(FAN_CLASS_NOTIF | FAN_NONBLOCK | FAN_CLOEXEC, O_RDONLY);
	CHECK(fan >= 0, "fanotify_init");
	CHECK(!fanotify_mark(fan, FAN_MARK_ADD, FAN_OPEN | FAN_EVENT_ON_CHILD, AT_FDCWD, "dir"), "mark");
	CHECK(!fanotify_mark(fan, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK, FAN_OPEN, AT_FDCWD, "file"), "ignore");
	workload_ready();

	CHECK(read(ino, buf, sizeof(buf)) < 0 && errno == EAGAIN, "events of nobody");
	CHECK(read(fan, buf, sizeof(buf)) < 0 && errno == EAGAIN, "events of nobody");
	touch("dir/new");
	CHECK(events(ino, dir, IN_CREATE) == 1, "directory");
	touch("file");
	CHECK(events(ino, file, IN_MODIFY) == 1, "file");
	touch("other name"), touch("linked");
	CHECK(events(ino, linked, IN_OPEN) == 1, "once, by its other name");
	CHECK(write(gone, "y", 1) == 1 && events(ino, lost, IN_MODIFY) == 1, "deleted file");
	CHECK(watch(ino, ".", IN_CREATE) > lost, "the next number");
	CHECK(watch(idle, ".", IN_CREATE) == 1, "first of the other");

	struct fanotify_event_metadata *e = (void *)buf;
	CHECK(read(fan, buf, sizeof(buf)) >= (ssize_t)sizeof(*e) && e->mask == FAN_OPEN && e->fd >= 0, "fanotify");
	workload_pass();
}
