package main

import (
	"fmt"
	"io"

	"cryo/internal/options"
)

// printVersion prints what drivers parse: LXC and go-criu read exactly these lines.
func printVersion() {
	fmt.Printf("Version: %s\n", version)
	if gitID != "" {
		fmt.Printf("GitID: %s\n", gitID)
	}
}

// usage is what a call without arguments gets.
func usage(w io.Writer) {
	options.WriteUsage(w)
	fmt.Fprint(w, "\nTry criu --help for the options.\n")
}
