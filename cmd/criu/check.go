package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"cryo/internal/features"
	"cryo/internal/options"
)

// checkKernel finds out whether the kernel has what every dump needs.
func checkKernel(context.Context, *options.Options) error {
	for _, f := range features.All {
		if f.Tier != features.Required {
			continue
		}
		if err := f.Supported(); err != nil {
			slog.Warn(err.Error())
			return fmt.Errorf("this kernel lacks what every dump needs: %w", err)
		}
	}
	return nil
}

// check says whether the kernel has what is needed: a verdict about everything, or about the features that were asked for.
func check(ctx context.Context, o *options.Options) error {
	if len(o.Features) > 0 {
		return checkNamed(o.Features)
	}
	if err := checkKernel(ctx, o); err != nil {
		slog.Warn("Does not look good.")
		return err
	}
	missing := false
	for _, f := range features.All {
		if f.Tier == features.Extra && o.Extra || f.Tier == features.Experimental && o.Experimental {
			if err := f.Supported(); err != nil {
				slog.Warn(err.Error())
				missing = true
			}
		}
	}
	if missing {
		fmt.Print("Looks good but some kernel features are missing\n" +
			"which, depending on your process tree, may cause\n" +
			"dump or restore failure.\n")
		return errReported
	}
	fmt.Println("Looks good.")
	return nil
}

// checkNamed answers for single features.
func checkNamed(names []string) error {
	var missing []error
	for _, name := range names {
		if name == "list" {
			for _, f := range features.All {
				fmt.Println(f.Name)
			}
			continue
		}
		f := features.ByNames(name)
		if f == nil {
			return fmt.Errorf("unknown feature %s: --feature list names them all", name)
		}
		if err := f.Supported(); err != nil {
			missing = append(missing, err)
			continue
		}
		fmt.Printf("%s is supported\n", name)
	}
	return errors.Join(missing...)
}
