package options

import "fmt"

// Verb is what the tool is asked to do; a set of verbs is their sum.
type Verb uint16

// The verbs of criu.
const (
	Dump Verb = 1 << iota
	PreDump
	Restore
	Check
	PageServer
	Service
	Swrk
	Dedup
	LazyPages
	CPUInfoDump
	CPUInfoCheck
	Exec
	Migrate
	Receive
	Extract

	dumping   = Dump | PreDump | Migrate
	restoring = Restore | Receive
	moving    = dumping | restoring
	serving   = PageServer | Service | LazyPages | Receive
	anyVerb   = Verb(1<<16 - 1)
	imageVerb = moving | PageServer | LazyPages | Dedup | Extract | CPUInfoDump | CPUInfoCheck
)

// verbRow describes a verb for help and parsing.
type verbRow struct {
	Verb  Verb
	Name  string
	Help  string
	Needs Capability
}

// Verbs lists the verbs in the order of the help.
var Verbs = []verbRow{
	{Dump, "dump", "save a process tree to an image set", Dumps},
	{PreDump, "pre-dump", "save memory only, ahead of a dump", Incremental},
	{Restore, "restore", "bring a process tree back from an image set", Restores},
	{Migrate, "migrate", "move a process tree to where 'criu receive' waits (our own)", Incremental},
	{Receive, "receive", "wait for a process tree that 'criu migrate' moves here (our own)", Restores},
	{Extract, "extract", "put a piped set from standard input into a directory (our own)", Restores},
	{Check, "check", "say whether this kernel has what is needed", Checks},
	{PageServer, "page-server", "receive memory pages of a dump elsewhere", PageServing},
	{Service, "service", "serve requests on a UNIX socket", RPCService},
	{Dedup, "dedup", "punch pages that newer images hold out of older ones", Dedups},
	{LazyPages, "lazy-pages", "serve memory pages to a lazy restore", Lazy},
	{CPUInfoDump, "cpuinfo dump", "write what this processor can do to an image", CPUChecks},
	{CPUInfoCheck, "cpuinfo check", "compare that image with this processor", CPUChecks},
	{Swrk, "swrk", "serve one client on a given descriptor (for libraries)", RPCService},
	{Exec, "exec", "deprecated by criu, not provided", Never},
}

func (v Verb) String() string {
	for _, r := range Verbs {
		if r.Verb == v {
			return r.Name
		}
	}
	return fmt.Sprintf("verb(%#x)", uint16(v))
}

// VerbByName finds a verb from the words of a command line and says how many of them named it.
func VerbByName(words []string) (Verb, int, error) {
	if len(words) == 0 {
		return 0, 0, fmt.Errorf("no command given")
	}
	if words[0] == "cpuinfo" {
		if len(words) == 1 {
			return 0, 0, fmt.Errorf("cpuinfo needs an action: dump or check")
		}
		for _, v := range []Verb{CPUInfoDump, CPUInfoCheck} {
			if v.String() == "cpuinfo "+words[1] {
				return v, 2, nil
			}
		}
		return 0, 0, fmt.Errorf("unknown action %q of cpuinfo: it has dump and check", words[1])
	}
	for _, r := range Verbs {
		if r.Name == words[0] {
			return r.Verb, 1, nil
		}
	}
	return 0, 0, fmt.Errorf("unknown command %q", words[0])
}
