package arch

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/cpuinfo"
	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// entry reads the first message of an image file.
func entry(t *testing.T, path string, magics int, m proto.Message) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Skip(err)
	}
	b = b[4*magics:]
	n := binary.LittleEndian.Uint32(b)
	if err := proto.Unmarshal(b[4:4+n], m); err != nil {
		t.Fatal(err)
	}
}

// TestCoreRoundTrip reads what criu dumped into this processor's layout and back.
func TestCoreRoundTrip(t *testing.T) {
	files, _ := filepath.Glob("../testdata/images/golden/core-*.img")
	for _, path := range files {
		var core criu_core.CoreEntry
		entry(t, path, 2, &core)
		if core.GetMtype() != March {
			t.Skipf("the golden images are of %v", core.GetMtype())
		}
		s, err := FromCore(&core)
		if err != nil {
			if strings.Contains(err.Error(), "does not have") {
				t.Skip(err)
			}
			t.Fatal(err)
		}
		again := new(criu_core.CoreEntry)
		if err := s.ToCore(again, core.GetThreadInfo().GetClearTidAddr()); err != nil {
			t.Fatal(err)
		}
		normalize(&core)
		normalize(again)
		if d := cmp.Diff(core.ThreadInfo, again.ThreadInfo, protocmp.Transform()); d != "" {
			t.Errorf("%s changes on the way through this processor's layout (-criu +here):\n%s", path, d)
		}
		second, err := FromCore(again)
		if err != nil || !bytes.Equal(second.XState, s.XState) {
			t.Errorf("extended state differs the second time: %v", err)
		}
	}
}

// normalize removes what depends on the machine an image was made on.
func normalize(core *criu_core.CoreEntry) {
	x := core.GetThreadInfo().GetFpregs().GetXsave()
	*x.XstateBv |= 1<<XFeatureFP | 1<<XFeatureSSE
	for _, c := range imageComponents(x) {
		if x.GetXstateBv()&(1<<c.feature) == 0 {
			*orEmpty(c.words32), *orEmpty(c.words64) = nil, nil
		}
	}
	x.Cet = nil
}

func TestFromCoreRefuses(t *testing.T) {
	var golden criu_core.CoreEntry
	files, _ := filepath.Glob("../testdata/images/golden/core-*.img")
	if len(files) == 0 {
		t.Skip("no golden images")
	}
	entry(t, files[0], 2, &golden)
	for _, tc := range []struct {
		name   string
		damage func(*criu_core.CoreEntry)
		want   string
	}{
		{"other architecture", func(c *criu_core.CoreEntry) { c.Mtype = criu_core.CoreEntry_S390.Enum() }, "S390"},
		{"no registers", func(c *criu_core.CoreEntry) { c.ThreadInfo = nil }, "no registers"},
		{"short x87", func(c *criu_core.CoreEntry) { c.ThreadInfo.Fpregs.StSpace = nil }, "0 words of x87"},
		{"short YMM", func(c *criu_core.CoreEntry) {
			*c.ThreadInfo.Fpregs.Xsave.XstateBv |= 1 << XFeatureYMM
			c.ThreadInfo.Fpregs.Xsave.YmmhSpace = make([]uint32, 3)
		}, "12 bytes instead of 256"},
	} {
		c := proto.Clone(&golden).(*criu_core.CoreEntry)
		tc.damage(c)
		if _, err := FromCore(c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestCPUInfo(t *testing.T) {
	info, err := CPUInfo()
	if err != nil {
		t.Skip(err)
	}
	peer := os.Getenv("CRIU_PEER")
	if peer == "" {
		t.Skip("CRIU_PEER names no criu to compare with")
	}
	dir := t.TempDir()
	if out, err := exec.Command(peer, "cpuinfo", "dump", "-D", dir).CombinedOutput(); err != nil {
		t.Skipf("%v: %s", err, out)
	}
	var want cpuinfo.CpuinfoEntry
	entry(t, filepath.Join(dir, "cpuinfo.img"), 2, &want)
	if d := cmp.Diff(&want, info, protocmp.Transform()); d != "" {
		t.Errorf("criu says otherwise (-criu +here):\n%s", d)
	}
}
