// Package vma knows the mappings of a task: it lists them, classifies them and converts between what the
// kernel says of a mapping and the vma_entry of criu's mm-PID.img, in both directions.
//
// Kernel interfaces: PROCMAP_QUERY on /proc/PID/maps (Linux 6.11) with the text of the same file as the
// fallback, the VmFlags lines of /proc/PID/smaps (Linux 3.8), the modes of the links in /proc/PID/map_files
// (Linux 3.3).
//
// The list and the flags are apart on purpose: listing costs 0.3 microseconds a mapping, smaps 3, and what
// of a task's memory has to be stored can be found out from the list alone.
package vma
