package cpuinfo

import (
	"fmt"

	"cryo/arch"

	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
	"google.golang.org/protobuf/proto"
)

// unnamed are components that criu leaves out of its images, and that it takes for too much in another's: the
// registers of SSE, which every processor has, and the bounds registers of MPX, which none has any more.
const unnamed = 1<<arch.XFeatureSSE | 1<<arch.XFeatureBndRegs

// Here is the image of this processor.
func Here() (*pb.CpuinfoEntry, error) {
	c := arch.CPU()
	vendor := pb.CpuinfoX86Entry_UNKNOWN
	switch {
	case c.Intel():
		vendor = pb.CpuinfoX86Entry_INTEL
	case c.AMD():
		vendor = pb.CpuinfoX86Entry_AMD
	default:
		return nil, fmt.Errorf("processor %v: criu's images know Intel's and AMD's only", c)
	}
	entry := &pb.CpuinfoX86Entry{
		VendorId:      vendor.Enum(),
		CpuFamily:     proto.Uint32(c.Family),
		Model:         proto.Uint32(c.Model),
		Stepping:      proto.Uint32(c.Stepping),
		CapabilityVer: proto.Uint32(2),
		Capability:    c.Caps[:],
		XfeaturesMask: proto.Uint64(c.XFeatures &^ unnamed),
		XsaveSize:     proto.Uint32(c.XSaveSize),
		XsaveSizeMax:  proto.Uint32(c.XSaveMax),
	}
	if c.Name != "" {
		entry.ModelId = proto.String(c.Name)
	}
	return &pb.CpuinfoEntry{X86Entry: []*pb.CpuinfoX86Entry{entry}}, nil
}
