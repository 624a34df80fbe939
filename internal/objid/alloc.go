package objid

import "sort"

// Allocator gives each distinct object of one type its number. Not safe for concurrent use: numbers must follow task
// order, so one goroutine allocates.
type Allocator struct {
	trees map[Type]*tree
}

// NewAllocator returns an empty allocator; the first object of each type gets number 1.
func NewAllocator() *Allocator { return &Allocator{trees: map[Type]*tree{}} }

// tree keeps the objects of one type. They are grouped by a key that differs only if the objects do (for files:
// device, inode, position), so that few comparisons reach the kernel; within a group they are sorted by the kernel's
// own order.
type tree struct {
	next   uint32
	groups map[Key][]member
}

// Key is what is known of an object without comparing: objects with different keys are different.
type Key struct {
	Dev, Ino uint64
	Extra    uint64
}

type member struct {
	ref Ref
	id  uint32
}

// ID returns the number of the object that ref uses, and whether it is met for the first time.
func (a *Allocator) ID(typ Type, key Key, ref Ref) (id uint32, fresh bool, err error) {
	t := a.tree(typ)
	group := t.groups[key]
	found := false
	i := sort.Search(len(group), func(i int) bool {
		if err != nil {
			return true
		}
		c, e := order(typ, group[i].ref, ref)
		if e != nil {
			err = e
		}
		if c == 0 && e == nil {
			found = true
		}
		return c >= 0
	})
	if err != nil {
		return 0, false, err
	}
	if found {
		return group[i].id, false, nil
	}
	id = t.take()
	group = append(group, member{})
	copy(group[i+1:], group[i:])
	group[i] = member{ref, id}
	t.groups[key] = group
	return id, true, nil
}

// Fresh returns a number for an object that needs no comparison.
func (a *Allocator) Fresh(typ Type) uint32 { return a.tree(typ).take() }

func (a *Allocator) tree(typ Type) *tree {
	t := a.trees[typ]
	if t == nil {
		t = &tree{next: 1, groups: map[Key][]member{}}
		a.trees[typ] = t
	}
	return t
}

func (t *tree) take() uint32 {
	id := t.next
	t.next++
	return id
}
