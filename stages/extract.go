package stages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"cryo/internal/options"
	"cryo/sinks"
)

// Extract puts a set that a dump with -D - has piped into the directory of images of o, from standard input, and reads nothing
// that follows it. A set that builds on another finds that by o.PrevImagesDir.
func Extract(ctx context.Context, o *options.Options) error {
	if err := o.Check(options.Extract); err != nil {
		return err
	}
	images, err := imagesDir(o)
	switch {
	case err != nil:
		return err
	case images == nil:
		return errors.New("extract: name the directory the set goes to with -D")
	}
	pipes, err := openPipes(o, os.Stdin, "pipe a dump with -D - into this")
	if err != nil {
		images.Close()
		return err
	}
	dir, err := sinks.NewDirFile(images, sinks.DirOptions{Sync: o.Sync, Parent: o.PrevImagesDir})
	if err != nil {
		return err
	}
	defer dir.Close()
	err = sinks.Extract(dir, readers(ctx, pipes)...)
	if err == io.EOF {
		return fmt.Errorf("extract: nothing came on %s", pipes[0].Name())
	}
	return err
}
