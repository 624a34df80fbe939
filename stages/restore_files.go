package stages

import (
	"runtime"

	"cryo/internal/remote"
	"cryo/pipeline"
	"cryo/restorers"

	"golang.org/x/sync/errgroup"
)

// restoreFiles makes all descriptors, level by level: every task has finished a level before any begins the next.
func (r *restorer) restoreFiles(s *pipeline.Stage, f *family) (*family, error) {
	tables := map[*member]*restorers.Table{}
	var owners []*member
	for _, t := range f.files.Tables {
		m := f.byNode[t.Node]
		tables[m] = t
		owners = append(owners, m)
	}
	level := func(lv restorers.Level) error {
		return r.runAll(owners, "files: "+lv.String(), func(m *member, b *remote.Builder) error {
			return f.files.EmitLevel(lv, tables[m], b)
		})
	}
	for _, lv := range []restorers.Level{restorers.Open, restorers.Pair} {
		if err := level(lv); err != nil {
			return nil, err
		}
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, m := range owners {
		g.Go(func() error { return f.files.Fill(tables[m], m.PID()) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := level(restorers.Attach); err != nil {
		return nil, err
	}
	return f, r.runAll(owners, "files: close helpers", func(m *member, b *remote.Builder) error {
		tables[m].EmitCleanup(b)
		return nil
	})
}
