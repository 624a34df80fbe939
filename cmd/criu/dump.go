package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"cryo/collectors"
	"cryo/internal/options"
	"cryo/stages"
)

// dump saves a tree. Of a refusal it prints everything that stands in the way, one line each.
func dump(ctx context.Context, o *options.Options) error {
	err := stages.Dump(ctx, o)
	var refused *collectors.ObstacleError
	if errors.As(err, &refused) && len(refused.List) > 1 && o.LogFile != "" { // else the log has shown them
		for _, obstacle := range refused.List {
			fmt.Fprintf(os.Stderr, "criu: %v\n", obstacle)
		}
	}
	return err
}
