// Webserver is an HTTP server with goroutines, timers and a child behind pipes, which is dumped with clients connected.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"sync/atomic"
	"time"
)

func main() {
	var count, ticks atomic.Int64
	for range 100 {
		go func() {
			for range time.Tick(5 * time.Millisecond) {
				ticks.Add(1)
			}
		}()
	}
	questions, answers := make(chan int), make(chan int)
	go func() {
		for n := range questions {
			answers <- 2 * n
		}
	}()
	cat := exec.Command("cat")
	in, _ := cat.StdinPipe()
	out, _ := cat.StdoutPipe()
	if err := cat.Start(); err != nil {
		log.Fatal(err)
	}
	for path, answer := range map[string]func() any{
		"/":       func() any { return "hello" },
		"/ticks":  func() any { return ticks.Load() },
		"/count":  func() any { return count.Load() },
		"/add":    func() any { return count.Add(1) },
		"/thread": func() any { questions <- 21; return <-answers },
		"/pipe": func() any {
			b := make([]byte, 2)
			io.WriteString(in, "42")
			io.ReadFull(out, b)
			return string(b)
		},
	} {
		http.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer()) })
	}
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
