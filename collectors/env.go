package collectors

import "cryo/internal/objid"

// Env is what all stages of one dump may use at any time: services that are safe for concurrent use, no task state.
type Env struct {
	// Obstacles is where a collector notes what it cannot dump, in place of failing.
	Obstacles *Obstacles
	// IDs allocates the numbers of kernel objects. Call it in task order only.
	IDs *objid.Allocator
	// Files knows every open file that the images will name. Call it in task order only.
	Files *Files
}
