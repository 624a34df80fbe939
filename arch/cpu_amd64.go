package arch

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
)

// Words of capability bits of [CPU], numbered as Linux and criu's images number them.
const (
	CapEDX1          = 0  // cpuid 1, edx
	CapEDX80000001   = 1  // cpuid 0x80000001, edx
	CapLinux1        = 3  // bits that Linux makes up
	CapECX1          = 4  // cpuid 1, ecx
	CapECX80000001   = 6  // cpuid 0x80000001, ecx
	CapEBX7          = 9  // cpuid 7, ebx
	CapEAXD1         = 10 // cpuid 0xd.1, eax
	CapECX7          = 11 // cpuid 7, ecx
	CapEDXF1         = 12 // cpuid 0xf.1, edx
	CapEBX80000008   = 13 // cpuid 0x80000008, ebx
	CapEAX6          = 14 // cpuid 6, eax
	CapEDX8000000A   = 15 // cpuid 0x8000000a, edx
	CapEDXF0         = 16 // cpuid 0xf.0, edx
	CapEBX80000007   = 17 // cpuid 0x80000007, ebx
	CapEDX7          = 18 // cpuid 7, edx
	CapWords         = 19
	capRepGood       = 1 << 16 // in CapLinux1: rep movs is fast
	capNopl          = 1 << 20 // in CapLinux1: the long no-operation
	capCpuid         = 1 << 25 // in CapLinux1: cpuid itself
	cap3DNowShadow   = 1 << 31 // in CapEDX1: AMD's old place of another bit
	capCacheOccupied = 1 << 1  // in CapEDXF0: leaf 0xf.1 exists
)

// CPUInfo is what cpuid tells about this processor.
type CPUInfo struct {
	Vendor                  string // "GenuineIntel", ...
	Family, Model, Stepping uint32
	Name                    string
	Caps                    [CapWords]uint32
	XFeatures               uint64 // components of the extended state that a user may use
	XSaveSize               uint32 // bytes of the extended state with what is switched on
	XSaveMax                uint32 // bytes with all that the processor has
}

// Intel and AMD say whose processor it is, or compatible with.
func (c *CPUInfo) Intel() bool { return c.Vendor == "GenuineIntel" }

// AMD includes Hygon's, which are the same.
func (c *CPUInfo) AMD() bool { return c.Vendor == "AuthenticAMD" || c.Vendor == "HygonGenuine" }

// CPU reads what cpuid tells, once.
var CPU = sync.OnceValue(func() *CPUInfo {
	c := new(CPUInfo)
	top, b, cx, d := cpuid(0, 0)
	c.Vendor = letters(b, d, cx)
	c.signature()
	c.basic(top)
	c.extended()
	c.Caps[CapLinux1] |= capCpuid | capNopl // every 64-bit processor
	if c.Intel() && c.Family == 6 || c.AMD() && c.Family >= 0x10 {
		c.Caps[CapLinux1] |= capRepGood
	}
	if c.AMD() {
		c.Caps[CapEDX1] &^= cap3DNowShadow
	}
	if top >= 0xd {
		low, size, most, high := cpuid(0xd, 0)
		c.XFeatures = (uint64(high)<<32 | uint64(low)) & userXFeatures
		c.XSaveSize, c.XSaveMax = size, most
	}
	return c
})

// userXFeatures are the components that criu's images know of; the dynamic ones (AMX) are a matter of the single task.
const userXFeatures = 1<<XFeatureFP | 1<<XFeatureSSE | 1<<XFeatureYMM | 1<<XFeatureBndRegs | 1<<XFeatureBndCSR |
	1<<XFeatureOpmask | 1<<XFeatureZMMHi256 | 1<<XFeatureHi16ZMM | 1<<XFeaturePKRU

// signature takes family, model and stepping apart; large numbers are in parts.
func (c *CPUInfo) signature() {
	a, _, cx, d := cpuid(1, 0)
	c.Family, c.Model, c.Stepping = a>>8&0xf, a>>4&0xf, a&0xf
	if c.Family == 0xf {
		c.Family += a >> 20 & 0xff
	}
	if c.Family >= 6 {
		c.Model |= a >> 16 & 0xf << 4
	}
	c.Caps[CapEDX1], c.Caps[CapECX1] = d, cx
}

// basic reads the leaves below 0x80000000 up to top.
func (c *CPUInfo) basic(top uint32) {
	if top >= 6 {
		c.Caps[CapEAX6], _, _, _ = cpuid(6, 0)
	}
	if top >= 7 {
		_, c.Caps[CapEBX7], c.Caps[CapECX7], c.Caps[CapEDX7] = cpuid(7, 0)
	}
	if top >= 0xd {
		c.Caps[CapEAXD1], _, _, _ = cpuid(0xd, 1)
	}
	if top >= 0xf {
		_, _, _, c.Caps[CapEDXF0] = cpuid(0xf, 0)
		if c.Caps[CapEDXF0]&capCacheOccupied != 0 {
			_, _, _, c.Caps[CapEDXF1] = cpuid(0xf, 1)
		}
	}
}

// extended reads the leaves from 0x80000000 on.
func (c *CPUInfo) extended() {
	top, _, _, _ := cpuid(0x80000000, 0)
	if top>>16 != 0x8000 {
		return
	}
	if top >= 0x80000001 {
		_, _, c.Caps[CapECX80000001], c.Caps[CapEDX80000001] = cpuid(0x80000001, 0)
	}
	if top >= 0x80000004 {
		for leaf := uint32(0x80000002); leaf <= 0x80000004; leaf++ {
			c.Name += letters4(cpuid(leaf, 0))
		}
		c.Name = strings.TrimLeft(strings.TrimRight(c.Name, "\x00"), " ")
	}
	if top >= 0x80000007 {
		_, c.Caps[CapEBX80000007], _, _ = cpuid(0x80000007, 0)
	}
	if top >= 0x80000008 {
		_, c.Caps[CapEBX80000008], _, _ = cpuid(0x80000008, 0)
	}
	if top >= 0x8000000a {
		_, _, _, c.Caps[CapEDX8000000A] = cpuid(0x8000000a, 0)
	}
}

// letters are the bytes of registers.
func letters(regs ...uint32) string {
	var b []byte
	for _, r := range regs {
		b = binary.LittleEndian.AppendUint32(b, r)
	}
	return string(b)
}

func (c *CPUInfo) String() string {
	return fmt.Sprintf("%s (%s family %d model %d stepping %d)", strings.TrimSpace(c.Name), c.Vendor, c.Family, c.Model, c.Stepping)
}

func letters4(a, b, c, d uint32) string { return letters(a, b, c, d) }
