// Package dirty tells which pages of a task were written since the last set of images, so that the next one holds only
// those.
//
// # Two ways
//
// Soft-dirty bits (Linux 3.11, CONFIG_MEM_SOFT_DIRTY) are the kernel's own: clear_refs takes them back for a whole address
// space and every write sets them. Many kernels are built without them and do not say so; it shows only by trying.
//
// Elsewhere pages are write protected by a userfaultfd (Linux 6.7, UFFD_FEATURE_WP_ASYNC): a write lifts the protection
// inside the kernel, nobody has to answer, and PAGEMAP_SCAN tells what is still protected. The userfaultfd belongs to one
// address space and can only be made inside of it; the tool takes it out and registers the mappings from outside.
//
// # What counts as not written
//
// Only a page of which that is sure: its mapping is registered with our own userfaultfd, and its protection, set when the
// parent set was made, is still there. Everything else counts as written. So these need no care of their own:
//
//   - a new mapping, a heap that grew, a mapping that was moved by mremap, the memory of a forked child or after exec:
//     they are not registered (nobody asked for UFFD_FEATURE_EVENT_FORK or _REMAP, so the kernel lets go of them);
//   - a hole that a page came into, or a page that MADV_DONTNEED took away and a write brought back: not protected;
//   - a mapping of the task's own userfaultfd, which cannot have a second one (EBUSY), whatever its pages say;
//   - a protected page of a file mapping that is not in memory: what looks like one in swap may be a mark the kernel
//     left where MADV_DONTNEED took the page away, and then the file shows through.
//
// # Between two runs of the tool
//
// The protection lasts as long as somebody has the userfaultfd open. In the task it would take a number of its
// descriptor table, which the program sees and may close. So a keeper holds it: a small process of this executable that
// does nothing but wait for its tasks to end. It knows the name of the set (dump_criu_run_id of its inventory) since
// which it has been holding. The next run finds it by looking for processes of its own user that were started as one,
// takes the descriptors (pidfd_getfd, Linux 5.6), and ends it before it begins a new period: should that run die or
// fail, nobody has the descriptors any more, the kernel takes all protection back, and the run after it stores
// everything. A parent set that is not the one the keeper knows makes everything count as written, too. The keeper goes
// when its last task has ended, when a final dump is done, or after a day.
//
// # What it costs
//
// The task pays about half a microsecond for the first write to each page after each set, and huge pages are split by
// such a write. While tracking is on its mappings show "uw" in smaps and do not merge with new ones.
//
// Kernel interfaces: userfaultfd(2), /proc/PID/pagemap by package pagemap, /proc/PID/clear_refs, pidfd_getfd(2).
// Images: none.
package dirty
