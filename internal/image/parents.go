package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
)

// ParentID is the file of a set that names the set it builds on by the dump_criu_run_id of that one's inventory. It is no
// image: criu has nothing of the kind and takes whatever the link leads to.
const ParentID = "parent.id"

// maxParentID is longer than any name.
const maxParentID = 256

// CheckParents follows the links from a set to those it builds on, and refuses one that has been made anew, or put in the
// place of another, since. A parent that never had an inventory, as a page server leaves it, and a link that leads nowhere pass: whether
// something is missing shows when pages are read.
func CheckParents(src Source, inv *inventory.InventoryEntry) error {
	set, opened := src, false
	defer func() {
		if opened {
			set.Close()
		}
	}()
	for {
		parent, err := set.Parent()
		if errors.Is(err, fs.ErrNotExist) || err == nil && parent == nil {
			return nil
		}
		if err != nil {
			return err
		}
		was, err := ReadInventory(parent)
		if errors.Is(err, ErrNoInventory) {
			was, err = nil, nil
		}
		if err == nil {
			err = checkParent(set, inv, was)
		}
		if opened {
			set.Close()
		}
		set, inv, opened = parent, was, true
		if err != nil {
			return err
		}
	}
}

// checkParent compares what a set says of its parent with that.
func checkParent(set Source, inv, parent *inventory.InventoryEntry) error {
	if inv != nil && parent != nil && inv.DumpUptime != nil && parent.GetDumpUptime() > inv.GetDumpUptime() {
		return fmt.Errorf("the set that %s builds on is newer than itself: another has been put in its place", set)
	}
	f, err := set.Open(ParentID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := io.ReadAll(io.LimitReader(f, maxParentID))
	if err != nil {
		return err
	}
	if parent == nil {
		return fmt.Errorf("the set that %s builds on has lost its inventory.img: it was being made anew", set)
	}
	if string(id) != parent.GetDumpCriuRunId() {
		return fmt.Errorf("the set that %s builds on was made by run %.64q and not by %.64q: another has been put in its place",
			set, parent.GetDumpCriuRunId(), id)
	}
	return nil
}
