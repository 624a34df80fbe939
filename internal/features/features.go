// Package features is the one registry of what the kernel can do for us. The code asks it to choose its way, as in
// features.PagemapScan.Available(), and `criu check` prints it.
//
// A feature is found out by doing, never by the version of the kernel: distributions backport, configurations leave out,
// and sandboxes forbid. Each is probed once a process, when it is first asked for. A probe changes nothing that outlives
// it: most are one system call that is refused in a telling way; what needs another namespace happens on a thread that
// is thrown away; what needs a tracee uses a stopped child that never runs an instruction of its own.
//
// Names are those of `criu check --feature`; the kernel version of a row is for messages only.
package features

import (
	"errors"
	"fmt"
	"sync"

	"cryo/internal/options"
)

// Tier says when `criu check` looks at a feature.
type Tier int

// The tiers of criu.
const (
	Required     Tier = iota // without it nothing works: always
	Extra                    // some trees need it: --extra and --all
	Experimental             // --experimental and --all
	ByName                   // only --feature NAME
)

// Feature is something that a kernel can or cannot do.
type Feature struct {
	Name  string
	Tier  Tier
	Since string // kernel version that has it in its standard configuration
	About string // what it is, and what does not work without it
	// Needs is the part of the tool that makes use of it; until that is built, `criu check` answers no.
	Needs options.Capability

	probe  func() error
	cached func() error
}

// Err is nil if the kernel, as configured and as far as we are allowed to, has the feature; otherwise it says why not.
func (f *Feature) Err() error { return f.cached() }

// Available reports whether the kernel has the feature.
func (f *Feature) Available() bool { return f.Err() == nil }

// Supported is what `criu check` answers: nil if the kernel has the feature and the tool makes use of it.
func (f *Feature) Supported() error {
	if err := f.Err(); err != nil {
		return err
	}
	if !f.Needs.Built() {
		return fmt.Errorf("%s is there, but what uses it is not built yet in this version (%s)", f.Name, f.Needs)
	}
	return nil
}

// Unsupported is the error of a feature that is not there.
type Unsupported struct {
	Feature *Feature
	Err     error
}

func (u *Unsupported) Error() string {
	since := ""
	if u.Feature.Since != "" {
		since = ", in Linux since " + u.Feature.Since
	}
	return fmt.Sprintf("%s (%s%s): %v", u.Feature.Name, u.Feature.About, since, u.Err)
}

func (u *Unsupported) Unwrap() error { return u.Err }

// errMissing is the cause where a probe has no better one.
var errMissing = errors.New("this kernel has it not")

// define registers a feature.
func define(name string, tier Tier, since, about string, probe func() error) *Feature {
	return &Feature{Name: name, Tier: tier, Since: since, About: about, probe: probe}
}

// usedBy says what part of the tool needs the feature.
func (f *Feature) usedBy(c options.Capability) *Feature { f.Needs = c; return f }

// register completes features for All; the order of the tables is that of the output.
func register(tables ...[]*Feature) []*Feature {
	var all []*Feature
	for _, t := range tables {
		for _, f := range t {
			f.cached = sync.OnceValue(func() error {
				if err := f.probe(); err != nil {
					return &Unsupported{f, err}
				}
				return nil
			})
			all = append(all, f)
		}
	}
	return all
}

// ByNames finds a feature; nil if there is none of that name.
func ByNames(name string) *Feature {
	for _, f := range All {
		if f.Name == name {
			return f
		}
	}
	return nil
}
