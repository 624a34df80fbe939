package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// declareWatched declares a graph of known figures: 10 items, each of 1000 bytes.
func declareWatched() *Graph {
	g := New("dump")
	in := Source(g, "seize", count(10), Doc(`freezes the tree and "lists" it`))
	all := Gather(g, "gather", Map(g, "write", in, func(s *Stage, v int) (int, error) {
		if v == 0 {
			s.Progress(0, 10)
		}
		time.Sleep(50 * time.Millisecond)
		s.Bytes(1000)
		s.Progress(1, 0)
		return v, nil
	}, Workers(2), InOrder(), Buffer(3)))
	Sink(g, "commit", all, func(s *Stage, _ []int) error { return nil })
	return g
}

func TestStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Stats
		if s.Stages() != nil {
			t.Error("figures before the run")
		}
		mustRun(t, declareWatched(), &s)
		got := s.Stage("write")
		got.Blocked, got.First = 0, 0
		want := StageView{
			Name: "write", Kind: "map", Workers: 2, State: Done, In: 10, Out: 10, Bytes: 10_000, Done: 10, Total: 10,
			Busy: 500 * time.Millisecond, Last: 250 * time.Millisecond, QueueCap: 1,
		}
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
		if s.Elapsed() != 250*time.Millisecond {
			t.Errorf("elapsed %v", s.Elapsed())
		}
		if c := s.Stage("commit"); c.In != 1 || c.First != 250*time.Millisecond {
			t.Errorf("commit: %+v", c)
		}
	})
}

func TestTraceLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		mustRun(t, declareWatched(), NewTrace(&out, false))
		for _, want := range []string{
			"(00.000000) dump: seize: begins\n",
			"(00.250000) dump: write: done, 10 in, 10 out, 9.8Ki bytes, busy 500ms, blocked ",
			"(00.250000) dump: done\n",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in:\n%s", want, out.String())
			}
		}
	})
}

func TestTraceTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		mustRun(t, declareWatched(), NewTrace(&out, true))
		frames := strings.Split(out.String(), "\x1b[J")
		if len(frames) != 1+3 { // at 100 ms, at 200 ms and at the end
			t.Fatalf("%d frames:\n%s", len(frames), out.String())
		}
		last := strings.Join(strings.Fields(frames[len(frames)-1]), " ")
		if want := "write done 10 10 0/1 9.8Ki 500ms"; !strings.Contains(last, want) {
			t.Errorf("no %q in %s", want, last)
		}
		if !strings.Contains(frames[1], "\x1b[6A") { // a frame goes back over the one before
			t.Errorf("frame %q", frames[1])
		}
	})
}

func TestTraceOfUndo(t *testing.T) {
	for _, live := range []bool{false, true} {
		var out bytes.Buffer
		g := New("t")
		Sink(g, "b", Source(g, "a", count(3)), func(s *Stage, v int) error {
			_, err := s.Undo().Push("a door", 0, func(context.Context) error { return nil })
			return errors.Join(err, errors.New("cause"))
		})
		if err := g.Run(t.Context(), NewTrace(&out, live)); err == nil {
			t.Error("no error")
		}
		if !strings.Contains(out.String(), "undo a door\n") {
			t.Errorf("no undo in %q", out.String())
		}
	}
}

func TestTraceFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		f := NewTraceFile(&out)
		mustRun(t, declareWatched(), f)
		if f.Err() != nil {
			t.Fatal(f.Err())
		}
		var events []traceEvent
		if err := json.Unmarshal(out.Bytes(), &events); err != nil {
			t.Fatalf("%v in:\n%s", err, out.String())
		}
		tracks, slices, queues := map[int]string{}, map[string]int{}, 0
		for _, e := range events {
			switch {
			case e.Name == "thread_name":
				tracks[e.Tid] = e.Args["name"].(string)
			case e.Phase == "X":
				if tracks[e.Tid] == "write" && e.Took < 50_000 {
					t.Errorf("a slice of %v µs", e.Took)
				}
				slices[tracks[e.Tid]]++
			case e.Phase == "C" && e.Name == "queue write":
				queues++
			}
		}
		if want := "map[commit:1 seize:1 write:10]"; fmt.Sprint(slices) != want || queues != 10 {
			t.Errorf("slices %v, %d queues", slices, queues)
		}
	})
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		mustRun(t, declareWatched(), NewProgress(&out))
		frames := strings.Split(out.String(), "\r\x1b[K")
		if len(frames) != 1+3 || !strings.HasPrefix(frames[1], "dump: write [#") || frames[3] != "dump: done after 250ms\n" {
			t.Errorf("%q", frames)
		}
	})
}

func TestProgressJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		mustRun(t, declareWatched(), NewProgressJSON(&out))
		last := map[string]ProgressLine{}
		for d := json.NewDecoder(&out); d.More(); {
			var line ProgressLine
			if err := d.Decode(&line); err != nil {
				t.Fatal(err)
			}
			last[line.Stage] = line
		}
		want := ProgressLine{Time: 0.25, Graph: "dump", Stage: "write", State: "done", In: 10, Out: 10, Bytes: 10_000, Done: 10, Total: 10}
		if last["write"] != want {
			t.Errorf("got  %+v\nwant %+v", last["write"], want)
		}
		if want := (ProgressLine{Time: 0.25, Graph: "dump", State: "done"}); last[""] != want {
			t.Errorf("got  %+v\nwant %+v", last[""], want)
		}
	})
}

func TestGraphs(t *testing.T) {
	wantDOT := `digraph "dump" {
	rankdir=LR;
	node [shape=box, fontname=sans];
	edge [fontname=monospace, fontsize=10];
	"seize" [label="seize\nsource\nfreezes the tree and \"lists\" it"];
	"write" [label="write\nmap ×2, in order"];
	"gather" [label="gather\ngather", style=rounded];
	"commit" [label="commit\nsink"];
	"seize" -> "write" [label="int [1]"];
	"write" -> "gather" [label="int [3]"];
	"gather" -> "commit" [label="[]int [1]"];
}
`
	wantMermaid := `---
title: dump
---
flowchart LR
	s0["seize<br/>source<br/>freezes the tree and #quot;lists#quot; it"]
	s1["write<br/>map ×2, in order"]
	s2["gather<br/>gather"]
	s3["commit<br/>sink"]
	s0 -- "int #91;1#93;" --> s1
	s1 -- "int #91;3#93;" --> s2
	s2 -- "#91;#93;int #91;1#93;" --> s3
`
	g := declareWatched()
	if got := g.DOT(); got != wantDOT {
		t.Errorf("got\n%s", got)
	}
	if got := g.Mermaid(); got != wantMermaid {
		t.Errorf("got\n%s", got)
	}
}
