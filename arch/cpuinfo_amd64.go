package arch

import (
	"fmt"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
	"google.golang.org/protobuf/proto"
)

// Words of the capability vector in cpuinfo.img. The order is part of the image format: that of the kernel's feature
// words around 4.14, with some leaves in the place of words the kernel makes up itself.
const (
	word1EDX = iota
	wordExt1EDX
	word80860001EDX // Transmeta, never filled
	wordLinux1
	word1ECX
	wordC0000001EDX // VIA, never filled
	wordExt1ECX
	wordLinux2
	wordLinux3
	word7EBX
	wordD1EAX
	word7ECX
	wordF1EDX
	wordExt8EBX
	word6EAX
	wordExtAEDX
	wordF0EDX
	wordExt7EBX
	word7EDX
	capabilityWords

	capabilityVersion = 2
)

// Bits of the synthetic word wordLinux1 and others that are set or cleared by hand.
const (
	bitRepGood     = 16
	bitNopl        = 20
	bitCPUID       = 25
	bitERMS        = 9
	bitXSAVE       = 26
	bit3DNowClash  = 31
	bitL3Occupancy = 1
)

// imageXFeatures are the components of the extended state that cpuinfo.img speaks of, with the capability each needs. SSE
// and the bound registers of MPX are not among them: criu leaves both out and refuses an image that has them.
var imageXFeatures = []struct {
	feature   int
	word, bit int
}{
	{XFeatureFP, word1EDX, 0}, {XFeatureYMM, word1ECX, 28}, {XFeatureBndCSR, word7EBX, 14},
	{XFeatureOpmask, word7EBX, 16}, {XFeatureZMMHi256, word7EBX, 16}, {XFeatureHi16ZMM, word7EBX, 16},
	{XFeaturePKRU, word7ECX, 3},
}

// CPUInfo identifies this processor for cpuinfo.img.
func CPUInfo() (*cpuinfo.CpuinfoEntry, error) {
	e := &cpuinfo.CpuinfoX86Entry{
		CapabilityVer: proto.Uint32(capabilityVersion),
		Capability:    make([]uint32, capabilityWords),
	}
	maxLeaf, vendor := cpuVendor()
	switch vendor {
	case "GenuineIntel":
		e.VendorId = cpuinfo.CpuinfoX86Entry_INTEL.Enum()
	case "AuthenticAMD", "HygonGenuine":
		e.VendorId = cpuinfo.CpuinfoX86Entry_AMD.Enum()
	default:
		return nil, fmt.Errorf("processors of vendor %q have no place in cpuinfo.img", vendor)
	}
	eax, _, _, _ := cpuid(1, 0)
	family, model := eax>>8&0xf, eax>>4&0xf
	if family == 0xf {
		family += eax >> 20 & 0xff
	}
	if family >= 6 {
		model += eax >> 16 & 0xf << 4
	}
	e.CpuFamily, e.Model, e.Stepping = proto.Uint32(family), proto.Uint32(model), proto.Uint32(eax&0xf)
	fillCapabilities(e.Capability, maxLeaf)
	fixCapabilities(e.Capability, e.GetVendorId(), family, maxLeaf)
	if name := cpuModelName(); name != "" {
		e.ModelId = proto.String(name)
	}
	fillXSave(e)
	return &cpuinfo.CpuinfoEntry{X86Entry: []*cpuinfo.CpuinfoX86Entry{e}}, nil
}

func cpuVendor() (maxLeaf uint32, vendor string) {
	eax, ebx, ecx, edx := cpuid(0, 0)
	var b [12]byte
	putWords32(b[:], []uint32{ebx, edx, ecx})
	return eax, string(b[:])
}

func fillCapabilities(c []uint32, maxLeaf uint32) {
	_, _, c[word1ECX], c[word1EDX] = cpuid(1, 0)
	if maxLeaf >= 6 {
		c[word6EAX], _, _, _ = cpuid(6, 0)
	}
	if maxLeaf >= 7 {
		_, c[word7EBX], c[word7ECX], c[word7EDX] = cpuid(7, 0)
	}
	if maxLeaf >= 0xd {
		c[wordD1EAX], _, _, _ = cpuid(0xd, 1)
	}
	if maxLeaf >= 0xf {
		_, _, _, c[wordF0EDX] = cpuid(0xf, 0)
		if c[wordF0EDX]&(1<<bitL3Occupancy) != 0 {
			_, _, _, c[wordF1EDX] = cpuid(0xf, 1)
		}
	}
	maxExt, _, _, _ := cpuid(0x80000000, 0)
	if maxExt>>16 == 0x8000 && maxExt >= 0x80000001 {
		_, _, c[wordExt1ECX], c[wordExt1EDX] = cpuid(0x80000001, 0)
	}
	if maxExt >= 0x80000007 {
		_, c[wordExt7EBX], _, _ = cpuid(0x80000007, 0)
	}
	if maxExt >= 0x80000008 {
		_, c[wordExt8EBX], _, _ = cpuid(0x80000008, 0)
	}
	if maxExt >= 0x8000000a {
		_, _, _, c[wordExtAEDX] = cpuid(0x8000000a, 0)
	}
}

// fixCapabilities sets what the processor does not tell and 64-bit code relies on, and clears what it tells wrongly.
func fixCapabilities(c []uint32, vendor cpuinfo.CpuinfoX86EntryVendor, family, maxLeaf uint32) {
	c[wordLinux1] |= 1<<bitCPUID | 1<<bitNopl
	if maxLeaf < 0xd {
		c[word1ECX] &^= 1 << bitXSAVE
	}
	if vendor == cpuinfo.CpuinfoX86Entry_INTEL {
		switch family {
		case 15:
			c[word7EBX] &^= 1 << bitERMS
		case 6:
			c[wordLinux1] |= 1 << bitRepGood
		}
		return
	}
	c[word1EDX] &^= 1 << bit3DNowClash
	signature, _, _, _ := cpuid(1, 0)
	if family >= 0x10 || family == 0xf && (signature >= 0x0f58 || signature >= 0x0f48 && signature < 0x0f50) {
		c[wordLinux1] |= 1 << bitRepGood
	}
}

func cpuModelName() string {
	if maxExt, _, _, _ := cpuid(0x80000000, 0); maxExt < 0x80000004 {
		return ""
	}
	var b [48]byte
	for i := range uint32(3) {
		eax, ebx, ecx, edx := cpuid(0x80000002+i, 0)
		putWords32(b[16*i:], []uint32{eax, ebx, ecx, edx})
	}
	name, _, _ := strings.Cut(string(b[:]), "\x00")
	return strings.TrimLeft(name, " ")
}

func fillXSave(e *cpuinfo.CpuinfoX86Entry) {
	e.XfeaturesMask, e.XsaveSize, e.XsaveSizeMax = proto.Uint64(0), proto.Uint32(0), proto.Uint32(0)
	if e.Capability[word1ECX]&(1<<bitXSAVE) == 0 {
		return
	}
	low, size, sizeMax, high := cpuid(0xd, 0)
	have := uint64(low) | uint64(high)<<32
	var mask uint64
	for _, x := range imageXFeatures {
		if have&(1<<x.feature) != 0 && e.Capability[x.word]&(1<<x.bit) != 0 {
			mask |= 1 << x.feature
		}
	}
	*e.XfeaturesMask, *e.XsaveSize, *e.XsaveSizeMax = mask, size, sizeMax
}
