package main

import (
	"context"

	"cryo/internal/cpuinfo"
	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/sinks"

	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
)

// cpuinfoDump writes what this processor can do.
func cpuinfoDump(_ context.Context, o *options.Options) error {
	here, err := cpuinfo.Here()
	if err != nil {
		return err
	}
	set, err := sinks.NewDir(o.ImagesDir, sinks.DirOptions{Sync: o.Sync, PagesOnly: true})
	if err != nil {
		return err
	}
	defer set.Close()
	return image.Write[*pb.CpuinfoEntry](set, image.Cpuinfo, 0, here)
}

// cpuinfoCheck compares what cpuinfoDump wrote with this processor. Without --cpu-cap it compares as a restore would
// that was asked to.
func cpuinfoCheck(_ context.Context, o *options.Options) error {
	set, err := image.OpenDir(o.ImagesDir)
	if err != nil {
		return err
	}
	defer set.Close()
	was, err := image.Read[*pb.CpuinfoEntry](set, image.Cpuinfo, 0)
	if err != nil {
		return err
	}
	caps := o.CPUCap
	if caps&options.CPUCapAll == options.CPUCapNone {
		caps = options.CPUCapAll
	}
	return cpuinfo.Check(was, caps)
}
