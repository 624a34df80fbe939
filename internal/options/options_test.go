package options

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// criuLong are the long options of criu 4.2.
const criuLong = `tree leave-stopped leave-running restore-detached restore-sibling daemon images-dir work-dir log-file
join-ns root ext-unix-sk help tcp-established close log-pid version evasive-devices pidfile veth-pair action-script
link-remap shell-job file-locks page-server address port prev-images-dir ms track-mem auto-dedup libdir cpu-cap
force-irmap ext-mount-map exec-cmd manage-cgroups cgroup-root inherit-fd feature skip-mnt enable-fs
enable-external-sharing enable-external-masters freeze-cgroup ghost-limit irmap-scan-path lsm-profile timeout external
empty-ns lazy-pages extra experimental all cgroup-props cgroup-props-file cgroup-dump-controller skip-in-flight
deprecated display-stats weak-sysctls status-fd tcp-close verbosity ps-socket stream config no-default-config
tls-cacert tls-cacrl tls-cert tls-key tls tls-no-cn-verify cgroup-yard pre-dump-mode file-validation
skip-file-rwx-check lsm-mount-context network-lock mntns-compat-mode unprivileged ghost-fiemap allow-uprobes`

// criuNegatable are those with a --no- form.
const criuNegatable = `restore-detached restore-sibling daemon tcp-established log-pid evasive-devices link-remap
shell-job file-locks page-server track-mem auto-dedup force-irmap extra experimental skip-in-flight deprecated
display-stats weak-sysctls tcp-close stream tls skip-file-rwx-check mntns-compat-mode unprivileged ghost-fiemap
allow-uprobes`

// criuShort is criu's getopt string.
const criuShort = "dSsRt:hD:o:v::x::Vr:jJ:lW:L:M:"

func TestTableHasEveryOptionOfCriu(t *testing.T) {
	long := strings.Fields(criuLong)
	if len(long) != 85 {
		t.Fatalf("the list has %d options, not 85", len(long))
	}
	names, shorts := spellings()
	negatable := map[string]bool{}
	for _, n := range strings.Fields(criuNegatable) {
		negatable[n] = true
	}
	theirs := map[string]bool{}
	for _, n := range long {
		theirs[n] = true
		row, ok := names[n]
		if !ok {
			t.Errorf("--%s is missing", n)
			continue
		}
		if row.row.Negatable != negatable[n] {
			t.Errorf("--no-%s: have %v, want %v", n, row.row.Negatable, negatable[n])
		}
	}
	for _, row := range Table {
		if row.Own == theirs[row.Long] {
			t.Errorf("--%s: Own is %v", row.Long, row.Own)
		}
		if row.Help == "" || row.Section == "" || row.Verbs == 0 || (row.Arg != NoArg) != (row.ArgName != "") {
			t.Errorf("--%s: the row is incomplete", row.Long)
		}
	}
	for s := criuShort; s != ""; {
		c, arg := s[0], NoArg
		s = s[1:]
		for strings.HasPrefix(s, ":") {
			s, arg = s[1:], arg+1
		}
		if row := shorts[c]; row == nil || row.Arg != arg {
			t.Errorf("-%c: missing, or with another kind of argument", c)
		}
	}
}

func TestParse(t *testing.T) {
	quiet(t)
	for _, tc := range []struct {
		args string
		want func(*Options)
	}{
		{"dump -t 7", func(o *Options) { o.Tree = 7 }},
		{"-t7 dump", func(o *Options) { o.Tree = 7 }},
		{"dump --tree=7", func(o *Options) { o.Tree = 7 }},
		{"--tre 7 dump", func(o *Options) { o.Tree = 7 }},
		{"dump -t 7 -R", func(o *Options) { o.Tree, o.Final = 7, LeaveRunning }},
		{"dump -R --leave-stopped", func(o *Options) { o.Final = LeaveStopped }},
		{"dump -v", func(o *Options) { o.Verbosity = 3 }},
		{"dump -v -v", func(o *Options) { o.Verbosity = 4 }},
		{"dump -vv", func(o *Options) { o.Verbosity = 4 }},
		{"dump -vvvv", func(o *Options) { o.Verbosity = 6 }},
		{"dump -v4", func(o *Options) { o.Verbosity = 4 }},
		{"dump -v0", func(o *Options) { o.Verbosity = 0 }},
		{"dump -verbosity=0", func(o *Options) { o.Verbosity = 0 }},
		{"dump --verbosity=4", func(o *Options) { o.Verbosity = 4 }},
		{"dump --verbosity", func(o *Options) { o.Verbosity = 3 }},
		{"dump -x", func(o *Options) { o.ExtUnixSk.Allow = true }},
		{"dump -x12,13 --ext-unix-sk=14", func(o *Options) { o.ExtUnixSk = ExtUnix{true, []uint64{12, 13, 14}} }},
		{"dump -jl -D /i -W /w", func(o *Options) { o.ShellJob, o.FileLocks, o.ImagesDir, o.WorkDir = true, true, "/i", "/w" }},
		{"dump -jlD/i", func(o *Options) { o.ShellJob, o.FileLocks, o.ImagesDir = true, true, "/i" }},
		{"dump -D -", func(o *Options) { o.ImagesDir = "-" }},
		{"dump --tcp-established --no-tcp-established", func(o *Options) {}},
		{"dump --no-ghost-fiemap", func(o *Options) { o.GhostFiemap = false }},
		{"dump --manage-cgroups=full", func(o *Options) { o.ManageCgroups = CgroupFull }},
		{"dump --manage-cgroups=full --manage-cgroups", func(o *Options) { o.ManageCgroups = CgroupSoft }},
		{"dump --cgroup-root cpu:/a --cgroup-root /b", func(o *Options) { o.CgroupRoots = []KeyValue{{"cpu", "/a"}, {"", "/b"}} }},
		{"dump --ghost-limit 4M", func(o *Options) { o.GhostLimit = 4 << 20 }},
		{"dump --ghost-limit 123", func(o *Options) { o.GhostLimit = 123 }},
		{"dump --cpu-cap", func(o *Options) { o.CPUCap = CPUCapAll | CPUCapImage }},
		{"dump --cpu-cap=none", func(o *Options) { o.CPUCap = CPUCapNone }},
		{"dump --cpu-cap=all,^fpu", func(o *Options) { o.CPUCap = CPUCapCPU | CPUCapIns | CPUCapImage }},
		{"dump --external file[1:2] --external dev[1/3]:x", func(o *Options) { o.External = []string{"file[1:2]", "dev[1/3]:x"} }},
		{"dump --enable-fs a,b", func(o *Options) { o.EnableFS = []string{"a", "b"} }},
		{"dump --network-lock nftables", func(o *Options) { o.NetworkLock = LockNftables }},
		{"dump --file-validation filesize", func(o *Options) { o.FileValidation = ValidateFileSize }},
		{"dump --progress=json --graph --trace-file t", func(o *Options) { o.Progress, o.Graph, o.TraceFile = "json", "dot", "t" }},
		{"dump --close 5 --status-fd 6", func(o *Options) { o.CloseFDs, o.StatusFD = []int{5}, 6 }},
		{"pre-dump --pre-dump-mode read", func(o *Options) { o.Verb, o.PreDumpMode = PreDump, PreDumpRead }},
		{"restore -d -S", func(o *Options) { o.Verb, o.Detach, o.Sibling = Restore, true, true }},
		{"restore --inherit-fd fd[3]:pipe:[77]", func(o *Options) { o.Verb, o.InheritFDs = Restore, []InheritFD{{3, "pipe:[77]"}} }},
		{"restore --exec-cmd -- ls -l", func(o *Options) { o.Verb, o.execAsked, o.ExecCmd = Restore, true, []string{"ls", "-l"} }},
		{"restore -J net:/proc/1/ns/net --veth-pair eth0=v0", func(o *Options) {
			o.Verb, o.JoinNS, o.VethPairs = Restore, []JoinNS{{NS: "net", File: "/proc/1/ns/net"}}, []KeyValue{{"eth0", "v0"}}
		}},
		{"restore -M auto -M a:b", func(o *Options) { o.Verb, o.ExtMountAuto, o.ExtMounts = Restore, true, []KeyValue{{"a", "b"}} }},
		{"restore --empty-ns net", func(o *Options) { o.Verb, o.EmptyNS = Restore, 0x40000000 }},
		{"check --all", func(o *Options) { o.Verb, o.Extra, o.Experimental = Check, true, true }},
		{"check --feature uffd --feature tun", func(o *Options) { o.Verb, o.Features = Check, []string{"uffd", "tun"} }},
		{"page-server --daemon --port 5 --ps-socket 4", func(o *Options) { o.Verb, o.Detach, o.Port, o.PageServerFD = PageServer, true, 5, 4 }},
		{"swrk 3", func(o *Options) { o.Verb, o.SwrkFD = Swrk, 3 }},
		{"cpuinfo check", func(o *Options) { o.Verb = CPUInfoCheck }},
	} {
		want := Default()
		want.Verb, want.Tree = Dump, 1
		tc.want(want)
		got, err := Parse(append([]string{"-t1"}, strings.Fields(tc.args)...))
		if err != nil {
			t.Errorf("criu %s: %v", tc.args, err)
			continue
		}
		if d := diff(want, got); d != "" {
			t.Errorf("criu %s: -want +got\n%s", tc.args, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	quiet(t)
	for args, want := range map[string]string{
		"":                                   "no command",
		"frob":                               "unknown command",
		"dump --frob":                        "unknown option '--frob'",
		"dump -z":                            "unknown option '-z'",
		"dump --tls-c x":                     "ambiguous: '--tls-cacert', '--tls-cacrl', '--tls-cert'",
		"dump --tr 1":                        "ambiguous: '--track-mem', '--tree'",
		"dump --tree":                        "needs an argument",
		"dump -t":                            "needs an argument",
		"dump -t x":                          `"x" is no pid`,
		"dump -t 0":                          `"0" is no pid`,
		"dump -t -5":                         "no pid",
		"dump --shell-job=yes":               "takes no argument",
		"dump --no-tree":                     "unknown option",
		"dump --port 0":                      "is no port",
		"dump --port 65536":                  "is no port",
		"dump --ghost-limit 1T":              "is no size",
		"dump --ghost-limit 99999999999999G": "is no size",
		"dump --timeout -1":                  "is no number",
		"dump --cpu-cap=mmx":                 "is not one of",
		"dump --external":                    "needs an argument",
		"dump --inherit-fd 3:x":              "is not of the form",
		"dump --empty-ns pid":                "only net can",
		"dump --manage-cgroups=x":            "is not one of",
		"dump -t1 --exec-cmd x":              "for restore only",
		"restore --exec-cmd":                 "needs a command",
		"restore -d --exec-cmd x":            "exclude each other",
		"swrk":                               "takes one descriptor",
		"swrk x":                             "is no descriptor number",
		"cpuinfo":                            "dump or check",
		"cpuinfo show":                       "unknown action",
		"dump --config /nowhere/at/all":      "no such file",
	} {
		_, err := Parse(strings.Fields(args))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("criu %s: got error %v, want one with %q", args, err, want)
		}
	}
}

// An option of our own never takes a prefix away that criu's user may type.
func TestOwnOptionsYieldToPrefixesOfCriu(t *testing.T) {
	for prefix, want := range map[string]string{"tra": "track-mem", "pro": "progress", "dr": "dry-run", "no-tra": "no-track-mem"} {
		if _, full, err := lookup(prefix); err != nil || full != want {
			t.Errorf("--%s: got %q, %v, want %q", prefix, full, err, want)
		}
	}
}

func TestConfigFile(t *testing.T) {
	quiet(t)
	conf := write(t, `
# comment
tcp-close
   no-ghost-fiemap   # another
--shell-job
verbosity 4 # comment
log-file=x.log
lsm-profile "selinux:a b \"c\""
external	dev[1/3]:x#comment
work-dir ""
manage-cgroups full
`)
	want := Default()
	want.Verb, want.Config, want.Tree = Dump, conf, 1
	want.TCPClose, want.GhostFiemap, want.ShellJob, want.Verbosity = true, false, true, 1
	want.LogFile, want.LSMProfile, want.ManageCgroups = "x.log", `selinux:a b "c"`, CgroupFull
	want.External = []string{"dev[1/3]:x"}
	got, err := Parse([]string{"dump", "-t1", "--config", conf, "-v1"})
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	for text, want := range map[string]string{
		"log-file a b":   "double quotes",
		`log-file "a`:    "not closed",
		`log-file "a" b`: "double quotes",
		"log-file":       "needs an argument",
		"tcp-close yes":  "takes no argument",
		"frob 1":         "unknown option",
		"\n\nport x":     ":3: port: ",
	} {
		_, err := Parse([]string{"dump", "--config", write(t, text)})
		var ce *ConfigError
		if !errors.As(err, &ce) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestConfigPrecedence(t *testing.T) {
	quiet(t)
	home := os.Getenv("HOME")
	if err := os.Mkdir(filepath.Join(home, ".criu"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".criu/default.conf"), []byte("log-file home\nshell-job"), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(wantLog string, wantJob bool, args ...string) {
		t.Helper()
		o, err := Parse(append([]string{"dump", "-t1"}, args...))
		if err != nil {
			t.Fatal(err)
		}
		if o.LogFile != wantLog || o.ShellJob != wantJob {
			t.Errorf("%v: log-file %q, shell-job %v, want %q, %v", args, o.LogFile, o.ShellJob, wantLog, wantJob)
		}
	}
	check("home", true)
	check("cmd", true, "-o", "cmd")
	check("home", false, "--no-shell-job")
	check("", false, "--no-default-config")
	check("named", false, "--config", write(t, "log-file named"))
	t.Setenv("CRIU_CONFIG_FILE", write(t, "log-file env"))
	check("env", true)
	check("named", false, "--config", write(t, "log-file named"))
}

func TestCheckRefusesWhatIsNotBuilt(t *testing.T) {
	for _, v := range Verbs {
		if err := Default().Check(v.Verb); (err == nil) != v.Needs.Built() {
			t.Errorf("defaults of %s: %v", v.Name, err)
		}
	}
	for i := range Table {
		row := &Table[i]
		if row.Needs.Built() || row.Verbs&Restore == 0 || row.Arg != NoArg {
			continue
		}
		o := Default()
		if err := row.Set(o, "", false, false); err != nil {
			t.Fatal(err)
		}
		var nb *NotBuiltError
		if err := o.checkOptions(Restore); !errors.As(err, &nb) || !strings.HasPrefix(err.Error(), "--"+row.Long+": ") {
			t.Errorf("--%s: got %v", row.Long, err)
		}
		if err := o.checkOptions(Check); row.Verbs&Check == 0 && err != nil {
			t.Errorf("--%s does not apply to check, but: %v", row.Long, err)
		}
	}
}

func FuzzConfigLine(f *testing.F) {
	f.Add(`lsm-profile "a \" b" # c`)
	f.Add("verbosity\t4")
	f.Fuzz(func(t *testing.T, line string) {
		_ = Default().configLine(line)
	})
}

func diff(want, got *Options) string {
	return cmp.Diff(want, got, cmp.AllowUnexported(Options{}), cmpopts.EquateEmpty())
}

// quiet keeps the configuration of the machine out of a test.
func quiet(t *testing.T) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("CRIU_CONFIG_FILE", "")
	if _, err := os.Stat(globalConfig); err == nil {
		t.Skipf("%s exists and would change the results", globalConfig)
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHelpFitsTheScreen(t *testing.T) {
	var b strings.Builder
	if err := WriteHelp(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if n := len(strings.TrimSuffix(line, "\n")); n > helpWidth || strings.HasSuffix(line, " \n") {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	for i := range Table {
		if !strings.Contains(b.String(), "--"+Table[i].Long) {
			t.Errorf("--%s is not shown", Table[i].Long)
		}
	}
}
