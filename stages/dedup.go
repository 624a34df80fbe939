package stages

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/sinks"
)

// Dedup takes the pages that the set of o has itself out of the sets it builds on.
func Dedup(_ context.Context, o *options.Options) error {
	images, err := imagesDir(o)
	if err != nil {
		return err
	}
	if images == nil {
		return fmt.Errorf("dedup: -D - is no set that builds on others")
	}
	defer images.Close()
	return giveBack(images, func(set *image.Dir) (int64, error) {
		up, err := set.Parent()
		if err == nil && up == nil {
			err = fmt.Errorf("dedup: %s builds on no other set: it has no link named parent", set)
		}
		if err != nil {
			return 0, err
		}
		up.Close()
		return sinks.Dedup(set)
	})
}

// giveBack gives pages in a directory of images back, and logs how much that was.
func giveBack(images *os.File, how func(*image.Dir) (int64, error)) error {
	own, err := dup(images)
	if err != nil {
		return err
	}
	set := image.NewDir(own)
	defer set.Close()
	freed, err := how(set)
	slog.Info("Deduplicated", "bytes", freed)
	return err
}
