// Command runtests runs go test, shows a line a package while it runs, then what failed, what was skipped and why, and counts.
// The whole output goes to a log.
//
//	go run ./testdata/runtests LOG [flags and packages of go test]
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: runtests LOG ARGS...")
		os.Exit(2)
	}
	code, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtests:", err)
		code = 1
	}
	os.Exit(code)
}

func run(logName string, args []string) (code int, err error) {
	if err := os.MkdirAll(filepath.Dir(logName), 0o777); err != nil {
		return 0, err
	}
	log, err := os.Create(logName)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	tool := os.Getenv("GO")
	if tool == "" {
		tool = "go"
	}
	cmd := exec.Command(tool, append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = io.MultiWriter(os.Stderr, log)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	s := summary{log: log, tests: map[test]*result{}}
	if err := s.read(out); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return 0, err
	}
	err = cmd.Wait()
	s.print(os.Stdout, logName)
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return max(ended.ExitCode(), 1), nil // -1: killed
	}
	return 0, err
}

// event is a line of go test -json, see go doc test2json.
type event struct {
	Action, Package, ImportPath, Test, Output string
}

// test names a test of a package, or with no name what the package says itself.
type test struct{ pkg, name string }

// result is what became of a test.
type result struct {
	action string // pass, fail, skip
	output []string
}

type summary struct {
	log   io.Writer
	tests map[test]*result
	order []test // as they ended
}

// read takes all events.
func (s *summary) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var e event
		if json.Unmarshal(line, &e) != nil { // no event: it is for people
			e = event{Action: "output", Output: string(line)}
		}
		if err := s.take(e); err != nil {
			return err
		}
	}
}

func (s *summary) take(e event) error {
	key := test{e.Package, e.Test}
	if e.Action == "build-output" || e.Action == "build-fail" {
		key = test{e.ImportPath, ""}
	}
	r := s.tests[key]
	if r == nil {
		r = &result{}
		s.tests[key] = r
	}
	switch e.Action {
	case "output", "build-output":
		r.output = append(r.output, e.Output)
		if e.Test == "" && (e.Action == "build-output" || strings.HasPrefix(e.Output, "ok") || strings.HasPrefix(e.Output, "FAIL\t")) {
			fmt.Print(e.Output)
		}
		_, err := io.WriteString(s.log, e.Output)
		return err
	case "pass", "fail", "skip":
		r.action = e.Action
		s.order = append(s.order, key)
		if e.Action == "pass" {
			r.output = nil
		}
	}
	return nil
}

// print tells what failed, what was skipped, and counts.
func (s *summary) print(w io.Writer, logName string) {
	count := map[string]int{}
	said := map[string]bool{}
	say := func(action, headline string, which func([]string) []string) {
		for _, t := range s.order {
			r := s.tests[t]
			if r.action != action || t.name == "" && (action != "fail" || s.failedWithin(t)) {
				continue
			}
			if t.name != "" {
				count[action]++
			}
			words := r.words()
			if len(words) == 0 && s.failedWithin(t) {
				continue // its parts say why
			}
			if !said[headline] {
				fmt.Fprintf(w, "\n%s\n", headline)
				said[headline] = true
			}
			fmt.Fprintf(w, "  %s %s\n", t.pkg, t.name)
			for _, line := range which(words) {
				fmt.Fprintf(w, "      %.600s\n", line)
			}
		}
	}
	for _, t := range s.order {
		if t.name != "" && s.tests[t].action == "pass" {
			count["pass"]++
		}
	}
	say("fail", "What failed (the whole log is "+logName+"):", ends)
	say("skip", "Skipped, and why:", func(words []string) []string { return words[max(0, len(words)-1):] })
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
}

// ends is the beginning and the end of what is long.
func ends(lines []string) []string {
	const head, tail = 10, 30
	if len(lines) <= head+tail {
		return lines
	}
	return slices.Concat(lines[:head], []string{"..."}, lines[len(lines)-tail:])
}

// failedWithin says whether a part of a test, or a test of a package, failed.
func (s *summary) failedWithin(t test) bool {
	return slices.ContainsFunc(s.order, func(o test) bool {
		inside := o.pkg == t.pkg && o.name != t.name && (t.name == "" || strings.HasPrefix(o.name, t.name+"/"))
		return inside && s.tests[o].action == "fail"
	})
}

// words is what a test said, without the marks of the framework.
func (r *result) words() (lines []string) {
	for line := range strings.Lines(strings.Join(r.output, "")) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			lines = append(lines, line)
		}
	}
	return lines
}
