// Package objid names kernel objects that several tasks may share.
//
// A dump asks the kernel whether two tasks use the same object (kcmp(2), Linux 3.5, CONFIG_KCMP) and gives every
// distinct object a number, counted from 1 in the order in which they are first met: ids follow task order, so a set is
// reproducible. A restore reads the numbers back and creates each object once. Images: ids-N.img, files.img.
package objid

// Kobj are the numbers of the objects a task_kobj_ids_entry carries besides namespaces.
type Kobj struct {
	VM, Files, FS, Sighand uint32
}
