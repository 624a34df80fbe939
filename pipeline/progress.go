package pipeline

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// NewProgress returns an observer that draws a bar on the terminal w, for the last stage that is at work and knows its
// total.
func NewProgress(w io.Writer) Observer { return &bar{w: w} }

type bar struct {
	w      io.Writer
	view   *View
	ticker *ticker
}

func (b *bar) Start(v *View) {
	b.view = v
	b.ticker = tick(redraw, func() { fmt.Fprintf(b.w, "\r\x1b[K%s", barText(v)) })
}

func (b *bar) Event(Event) {}

func (b *bar) End(err error) {
	b.ticker.end()
	verdict := "done"
	if err != nil {
		verdict = "failed"
	}
	fmt.Fprintf(b.w, "\r\x1b[K%s: %s after %s\n", b.view.Graph(), verdict, durationText(b.view.Elapsed()))
}

// barWidth is the number of characters between the brackets.
const barWidth = 30

func barText(v *View) string {
	var at *StageView
	for _, s := range v.Stages() {
		if s.State == Running && (at == nil || s.Total > 0 || at.Total <= 0) {
			at = &s
		}
	}
	switch {
	case at == nil:
		return v.Graph()
	case at.Total <= 0:
		return fmt.Sprintf("%s: %s: %d", v.Graph(), at.Name, max(at.In, at.Out))
	}
	part := min(max(float64(at.Done)/float64(at.Total), 0), 1)
	full := int(part * barWidth)
	text := fmt.Sprintf("%s: %s [%s%s] %3.0f%%", v.Graph(), at.Name, strings.Repeat("#", full), strings.Repeat("-", barWidth-full), part*100)
	if took := v.Elapsed() - at.First; at.Bytes > 0 && took > 0 {
		text += fmt.Sprintf("  %s, %s/s", byteText(at.Bytes), byteText(int64(float64(at.Bytes)/took.Seconds())))
	}
	return text
}

// ProgressLine is what NewProgressJSON writes: the state of a stage, or, without Stage, how the run ended.
type ProgressLine struct {
	Time  float64 `json:"time"` // seconds since the start of the run
	Graph string  `json:"graph"`
	Stage string  `json:"stage,omitempty"`
	State string  `json:"state"` // of a stage: waiting, running, done, stopped; of the run: done, failed
	In    int64   `json:"in,omitempty"`
	Out   int64   `json:"out,omitempty"`
	Bytes int64   `json:"bytes,omitempty"`
	Done  int64   `json:"done,omitempty"`
	Total int64   `json:"total,omitempty"`
	Error string  `json:"error,omitempty"`
}

// NewProgressJSON returns an observer that writes [ProgressLine]s to w: at regular times one for each stage that has
// moved since, and one for the end of the run.
func NewProgressJSON(w io.Writer) Observer {
	return &progressLines{w: w, last: map[string]ProgressLine{}}
}

type progressLines struct {
	w      io.Writer
	view   *View
	ticker *ticker
	mu     sync.Mutex
	last   map[string]ProgressLine // what was written of each stage
}

func (p *progressLines) Start(v *View) {
	p.view = v
	p.ticker = tick(redraw, p.report)
}

func (p *progressLines) Event(e Event) {
	if e.Kind == StageEnd {
		p.report()
	}
}

func (p *progressLines) End(err error) {
	p.ticker.end()
	p.report()
	line := ProgressLine{Time: p.time(), Graph: p.view.Graph(), State: "done"}
	if err != nil {
		line.State, line.Error = "failed", err.Error()
	}
	p.write(line)
}

func (p *progressLines) time() float64 { return p.view.Elapsed().Round(time.Microsecond).Seconds() }

func (p *progressLines) report() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.view.Stages() {
		line := ProgressLine{
			Graph: p.view.Graph(), Stage: s.Name, State: s.State.String(),
			In: s.In, Out: s.Out, Bytes: s.Bytes, Done: s.Done, Total: s.Total,
		}
		if s.State == Waiting || line == p.last[s.Name] {
			continue
		}
		p.last[s.Name] = line
		line.Time = p.time()
		p.write(line)
	}
}

func (p *progressLines) write(line ProgressLine) {
	text, _ := json.Marshal(line) // nothing in it can fail
	p.w.Write(append(text, '\n'))
}
