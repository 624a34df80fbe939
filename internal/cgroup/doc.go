// Package cgroup reads and writes control groups for both halves: in which groups a thread is (/proc/PID/cgroup), where the
// hierarchies are, and the files of a group. Version 1 (Linux 2.6.24), with controllers, named, or both, and version 2 (4.5)
// are known, also side by side.
//
// A hierarchy is known by its name in /proc/PID/cgroup: its controllers or "name=NAME", parted by commas; that of version 2
// has the empty name. A group is known by its path from the root that the tool's cgroup namespace shows.
//
// Nothing of the host's mounts is changed: a hierarchy is reached by a mount that is there. Only one of version 1 that is
// mounted nowhere is mounted, at no place at all (fsopen, Linux 5.2), until it is closed. Mounting version 2 would set its
// options anew for everybody.
package cgroup
