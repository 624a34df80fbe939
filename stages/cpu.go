package stages

import (
	"fmt"

	"cryo/internal/cpuinfo"
	"cryo/internal/image"
	"cryo/internal/options"

	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
)

// writeCPU adds what the tree may rely on of this processor to the set, if --cpu-cap asked for it.
func writeCPU(set image.Creator, o *options.Options) error {
	if o.CPUCap&options.CPUCapImage == 0 {
		return nil
	}
	here, err := cpuinfo.Here()
	if err != nil {
		return fmt.Errorf("--cpu-cap: %w", err)
	}
	return image.Write[*pb.CpuinfoEntry](set, image.Cpuinfo, 0, here)
}

// checkCPU compares that with this processor, if --cpu-cap asked for it.
func (r *restorer) checkCPU() error {
	if r.o.CPUCap&options.CPUCapImage == 0 {
		return nil
	}
	was, err := image.Read[*pb.CpuinfoEntry](r.source, image.Cpuinfo, 0)
	if err != nil {
		return fmt.Errorf("--cpu-cap: %w: dump with --cpu-cap too", err)
	}
	return cpuinfo.Check(was, r.o.CPUCap)
}
