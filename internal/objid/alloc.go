package objid

import (
	"fmt"
	"slices"
)

// Allocator gives each distinct object of one type its number. Not safe for concurrent use: numbers must follow task
// order, so one goroutine allocates.
type Allocator struct {
	trees map[Type]*tree
}

// NewAllocator returns an empty allocator; the first object of each type gets number 1.
func NewAllocator() *Allocator { return &Allocator{trees: map[Type]*tree{}} }

// tree keeps the objects of one type, grouped by key, so that few comparisons reach the kernel.
type tree struct {
	next   uint32
	groups map[Key]group
}

// Key is what is known of an object without comparing: objects with different keys are different.
type Key struct {
	Dev, Ino uint64
	Extra    uint64
}

// group are the objects with one key.
type group struct {
	all    []member            // in the kernel's order, while they are few
	byHint map[uint64][]member // so for each hint, when they are many
	doubt  bool
}

type member struct {
	ref Ref
	id  uint32
}

// many is how large a group gets before hints are trusted.
const many = 64

// ID returns the number of the object that ref uses, and whether it is met for the first time.
func (a *Allocator) ID(typ Type, key Key, ref Ref) (id uint32, fresh bool, err error) {
	t := a.tree(typ)
	g := t.groups[key]
	if g.byHint == nil && len(g.all) >= many && ref.Hint != 0 {
		g.split()
	}
	at := 0
	for _, list := range g.candidates(ref.Hint) {
		i, found, err := search(typ, list, ref)
		if err != nil {
			return 0, false, err
		}
		if found {
			return list[i].id, false, nil
		}
		at = i // the list of its own hint is the last
	}
	id = t.take()
	if m := (member{ref, id}); g.byHint == nil {
		g.all = slices.Insert(g.all, at, m)
	} else {
		g.byHint[ref.Hint] = slices.Insert(g.byHint[ref.Hint], at, m)
	}
	t.groups[key] = g
	return id, true, nil
}

// split begins to trust hints.
func (g *group) split() {
	g.byHint = map[uint64][]member{}
	for _, m := range g.all {
		g.byHint[m.ref.Hint] = append(g.byHint[m.ref.Hint], m)
	}
	g.all = nil
}

// candidates are the lists in which an object with that hint may be. The last is where it belongs.
func (g *group) candidates(hint uint64) [][]member {
	switch {
	case g.byHint == nil:
		return [][]member{g.all}
	case hint != 0:
		return [][]member{g.byHint[0], g.byHint[hint]}
	}
	var lists [][]member
	for h, list := range g.byHint {
		if h != 0 {
			lists = append(lists, list)
		}
	}
	return append(lists, g.byHint[0])
}

// search finds an object in a list in the kernel's order, or where it belongs there.
func search(typ Type, list []member, ref Ref) (at int, found bool, err error) {
	low, high := 0, len(list)
	for low < high {
		middle := (low + high) / 2
		c, err := order(typ, list[middle].ref, ref)
		switch {
		case err != nil || c == 0:
			return middle, err == nil, err
		case c < 0:
			low = middle + 1
		default:
			high = middle
		}
	}
	return low, false, nil
}

// Guessed says whether objects with that key were told apart by their hints alone. Whoever gave the hints has to find
// out then, when all objects are known, whether they still hold, and to say so by Doubt if one does not.
func (a *Allocator) Guessed(typ Type, key Key) bool { return a.tree(typ).groups[key].byHint != nil }

// Doubt says that hints of objects with that key do not hold: Settle will compare all of them.
func (a *Allocator) Doubt(typ Type, key Key) {
	t := a.tree(typ)
	g := t.groups[key]
	g.doubt = true
	t.groups[key] = g
}

// Settle ends the allocation. It fails if one object got two numbers because its hint has changed meanwhile.
func (a *Allocator) Settle() error {
	for typ, t := range a.trees {
		for _, g := range t.groups {
			if g.doubt {
				if err := g.settle(typ); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (g *group) settle(typ Type) (err error) {
	var all []member
	for _, list := range g.byHint {
		all = append(all, list...)
	}
	compare := func(x, y member) int {
		c, e := order(typ, x.ref, y.ref)
		if e != nil {
			err = e
		}
		return c
	}
	slices.SortFunc(all, compare)
	for i := range all[1:] {
		if compare(all[i], all[i+1]) == 0 && err == nil {
			x, y := all[i].ref, all[i+1].ref
			return fmt.Errorf("descriptor %d of task %d and %d of task %d have one file, whose position another process moves: dump again when it does not",
				x.Index, x.Pid, y.Index, y.Pid)
		}
	}
	return err
}

// Fresh returns a number for an object that needs no comparison.
func (a *Allocator) Fresh(typ Type) uint32 { return a.tree(typ).take() }

func (a *Allocator) tree(typ Type) *tree {
	t := a.trees[typ]
	if t == nil {
		t = &tree{next: 1, groups: map[Key]group{}}
		a.trees[typ] = t
	}
	return t
}

func (t *tree) take() uint32 {
	id := t.next
	t.next++
	return id
}
