// Command runtests runs go test, shows a line a package while it runs and why one failed, then what was skipped and why, what
// failed by name, and counts. The whole output goes to a log.
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
	s := summary{out: os.Stdout, log: log, tests: map[test]*result{}}
	if err := s.read(out); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return 0, err
	}
	err = cmd.Wait()
	s.print(logName)
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
	out   io.Writer // for people
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
		failed := strings.HasPrefix(e.Output, "FAIL\t")
		if e.Test == "" && (e.Action == "build-output" || failed || strings.HasPrefix(e.Output, "ok")) {
			fmt.Fprint(s.out, e.Output)
		}
		_, err := io.WriteString(s.log, e.Output)
		return err
	case "pass", "fail", "skip":
		r.action = e.Action
		s.order = append(s.order, key)
		if e.Action == "pass" {
			r.output = nil
		}
		if e.Action == "fail" && e.Test == "" {
			s.tell("fail", e.Package, ends)
		}
	}
	return nil
}

// print tells what was skipped, what failed, and counts.
func (s *summary) print(logName string) {
	count := map[string]int{}
	var failed []test
	for _, t := range s.order {
		action := s.tests[t].action
		if t.name != "" {
			count[action]++
		}
		if action == "fail" && !s.failedWithin(t) {
			failed = append(failed, t)
		}
	}
	if count["skip"] > 0 {
		fmt.Fprintf(s.out, "\nSkipped, and why:\n")
		s.tell("skip", "", func(words []string) []string { return words[max(0, len(words)-1):] })
	}
	if len(failed) > 0 {
		fmt.Fprintf(s.out, "\nFailed, see above (the whole log is %s):\n", logName)
	}
	for _, t := range failed {
		fmt.Fprintf(s.out, "  %s %s\n", t.pkg, t.name)
	}
	fmt.Fprintf(s.out, "\n%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
}

// tell names the tests that came to an end, of one package or of all, with what they said; those whose parts say it are
// passed over.
func (s *summary) tell(action, pkg string, which func([]string) []string) {
	for _, t := range s.order {
		r := s.tests[t]
		if r.action != action || pkg != "" && t.pkg != pkg || t.name == "" && action != "fail" {
			continue
		}
		words := r.words()
		if s.failedWithin(t) && (t.name == "" || len(words) == 0) {
			continue
		}
		fmt.Fprintf(s.out, "  %s %s\n", t.pkg, t.name)
		for _, line := range which(words) {
			fmt.Fprintf(s.out, "      %.600s\n", line)
		}
	}
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
