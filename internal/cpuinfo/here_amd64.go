package cpuinfo

import (
	"cryo/arch"

	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
)

// Here is the image of this processor.
func Here() (*pb.CpuinfoEntry, error) { return arch.CPUInfo() }
