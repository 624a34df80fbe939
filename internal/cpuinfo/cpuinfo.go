// Package cpuinfo says what of the processor an image set relies on, and whether another processor will do: the image
// cpuinfo, which `criu cpuinfo dump` and a dump with --cpu-cap write, and which `criu cpuinfo check` and a restore with
// --cpu-cap compare.
package cpuinfo

import (
	"errors"
	"fmt"
	"strings"

	"cryo/internal/options"

	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
)

// MismatchError is a processor that will not do.
type MismatchError struct {
	// What is missing or different, in words.
	What string
	// Cap is the part of --cpu-cap that found it.
	Cap string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("this processor will not do: %s: restore on one that has it, or leave %s out of --cpu-cap", e.What, e.Cap)
}

// Check compares an image with this processor, as far as caps ask. Whatever the source had must be there; more does
// no harm, unless caps has CPUCapCPU, which asks for the same.
func Check(img *pb.CpuinfoEntry, caps options.CPUCap) error {
	here, err := Here()
	if err != nil {
		return err
	}
	return compare(img, here, caps)
}

func compare(img, here *pb.CpuinfoEntry, caps options.CPUCap) error {
	if len(img.GetX86Entry()) != 1 || len(here.GetX86Entry()) != 1 {
		return errors.New("the image cpuinfo is not of one x86 processor")
	}
	was, is := img.X86Entry[0], here.X86Entry[0]
	words, ok := map[uint32]int{1: 12, 2: 19}[was.GetCapabilityVer()]
	if !ok || len(was.GetCapability()) != words {
		return fmt.Errorf("the image cpuinfo has %d words of version %d, which is no version known", len(was.GetCapability()), was.GetCapabilityVer())
	}
	switch was.GetVendorId() {
	case pb.CpuinfoX86Entry_INTEL, pb.CpuinfoX86Entry_AMD:
	default:
		return fmt.Errorf("the image cpuinfo names vendor %d, which is none known", was.GetVendorId())
	}
	if caps&options.CPUCapFPU != 0 {
		if err := compareFPU(was, is); err != nil {
			return err
		}
	}
	if caps&options.CPUCapIns != 0 {
		for i, mask := range instructions() {
			if i < words {
				if missing := was.Capability[i] & mask &^ is.Capability[i]; missing != 0 {
					return &MismatchError{"it lacks instructions of the source: " + names(i, missing), "ins"}
				}
			}
		}
	}
	if caps&options.CPUCapCPU != 0 {
		for i, w := range was.Capability {
			if d := w ^ is.Capability[i]; d != 0 {
				return &MismatchError{"it differs from the source in " + names(i, d), "cpu"}
			}
		}
	}
	return nil
}

// compareFPU is about the state that is saved: a task may have its size and layout in variables.
func compareFPU(was, is *pb.CpuinfoX86Entry) error {
	for i, mask := range stateBits {
		if i < len(was.Capability) {
			if missing := was.Capability[i] & mask &^ is.Capability[i]; missing != 0 {
				return &MismatchError{"it lacks ways to save state of the source: " + names(i, missing), "fpu"}
			}
		}
	}
	if was.XfeaturesMask != nil {
		if missing := was.GetXfeaturesMask() &^ is.GetXfeaturesMask(); missing != 0 {
			return &MismatchError{fmt.Sprintf("it lacks components of extended state of the source: %#x", missing), "fpu"}
		}
	}
	if was.XsaveSize != nil && was.GetXsaveSize() != is.GetXsaveSize() {
		return &MismatchError{fmt.Sprintf("its extended state has %d bytes, the source's %d", is.GetXsaveSize(), was.GetXsaveSize()), "fpu"}
	}
	if was.XsaveSizeMax != nil && was.GetXsaveSizeMax() != is.GetXsaveSizeMax() {
		return &MismatchError{fmt.Sprintf("its extended state has at most %d bytes, the source's %d", is.GetXsaveSizeMax(), was.GetXsaveSizeMax()), "fpu"}
	}
	return nil
}

// names lists bits of a word of capabilities.
func names(word int, bits uint32) string {
	var list []string
	for bit := range 32 {
		if bits&(1<<bit) == 0 {
			continue
		}
		name := bitNames()[word*32+bit]
		if name == "" {
			name = fmt.Sprintf("bit %d of word %d", bit, word)
		}
		list = append(list, name)
	}
	return strings.Join(list, ", ")
}
