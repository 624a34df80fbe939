package cpuinfo

import (
	"errors"
	"strings"
	"testing"

	"cryo/internal/options"

	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
	"google.golang.org/protobuf/proto"
)

const everything = options.CPUCapAll

func TestHereMatchesItself(t *testing.T) {
	here, err := Here()
	if err != nil {
		t.Skip(err)
	}
	if err := Check(here, everything); err != nil {
		t.Error(err)
	}
	x := here.X86Entry[0]
	if x.Capability[0]&1 == 0 || x.GetXsaveSize() < 512 || x.GetModelId() == "" {
		t.Errorf("not a processor: %v", x)
	}
}

func TestCompare(t *testing.T) {
	entry := func(change func(*pb.CpuinfoX86Entry)) *pb.CpuinfoEntry {
		x := &pb.CpuinfoX86Entry{
			VendorId: pb.CpuinfoX86Entry_INTEL.Enum(), CapabilityVer: proto.Uint32(2), Capability: make([]uint32, 19),
			XfeaturesMask: proto.Uint64(7), XsaveSize: proto.Uint32(832), XsaveSizeMax: proto.Uint32(832),
		}
		change(x)
		return &pb.CpuinfoEntry{X86Entry: []*pb.CpuinfoX86Entry{x}}
	}
	same := func(*pb.CpuinfoX86Entry) {}
	avx512 := func(x *pb.CpuinfoX86Entry) { x.Capability[9] |= 1 << 16 }
	unknown := func(x *pb.CpuinfoX86Entry) { x.Capability[2] |= 1 << 5 }
	for _, tc := range []struct {
		name     string
		was, is  func(*pb.CpuinfoX86Entry)
		caps     options.CPUCap
		want     string
		mismatch bool
	}{
		{"same", same, same, everything, "", false},
		{"fewer instructions", avx512, same, options.CPUCapIns, "avx512f", true},
		{"more instructions", same, avx512, options.CPUCapIns, "", false},
		{"more, but strict", same, avx512, options.CPUCapCPU, "avx512f", true},
		{"a bit nobody uses", unknown, same, options.CPUCapIns, "", false},
		{"that bit, strict", unknown, same, options.CPUCapCPU, "bit 5 of word 2", true},
		{"fewer components", func(x *pb.CpuinfoX86Entry) { x.XfeaturesMask = proto.Uint64(0xff) }, same, options.CPUCapFPU, "0xf8", true},
		{"other size", func(x *pb.CpuinfoX86Entry) { x.XsaveSize = proto.Uint32(2696) }, same, options.CPUCapFPU, "2696", true},
		{"other size, not asked", func(x *pb.CpuinfoX86Entry) { x.XsaveSize = proto.Uint32(2696) }, same, options.CPUCapIns, "", false},
		{"old image", func(x *pb.CpuinfoX86Entry) {
			x.CapabilityVer, x.Capability, x.XfeaturesMask, x.XsaveSize, x.XsaveSizeMax = proto.Uint32(1), make([]uint32, 12), nil, nil, nil
		}, same, everything, "", false},
		{"cut image", func(x *pb.CpuinfoX86Entry) { x.Capability = x.Capability[:3] }, same, everything, "3 words", false},
		{"no vendor", func(x *pb.CpuinfoX86Entry) { x.VendorId = pb.CpuinfoX86EntryVendor(9).Enum() }, same, everything, "vendor 9", false},
	} {
		err := compare(entry(tc.was), entry(tc.is), tc.caps)
		var m *MismatchError
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) || errors.As(err, &m) != tc.mismatch {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
	if err := compare(&pb.CpuinfoEntry{}, entry(same), everything); err == nil {
		t.Error("an empty image will do")
	}
}
