package collectors

// Files is the table of all files that the images name: descriptors, working and root directories, executables, mapped
// files. One open file description has one entry; a path that is named without a descriptor (exe, cwd, root, a mapping)
// has one entry for each inode and mount.
//
// Calls are made in task order by one goroutine, so that ids follow the tree and not the scheduler.
type Files struct{}

// Named returns the id of the file that a link in /proc/PID leads to: "exe", "cwd", "root" or
// "map_files/START-END" (addresses in hex without 0x). Flags are the open flags to restore it with (O_RDONLY, O_RDWR).
// Deleted files are remapped to ghosts or links as descriptors are; what cannot be remapped becomes an obstacle.
func (f *Files) Named(t *Task, link string, flags uint32) (uint32, error) {
	panic("not reached before the file kinds are in")
}
