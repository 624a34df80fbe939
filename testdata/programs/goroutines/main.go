// Goroutines is a target of the end-to-end tests: hundreds of goroutines that
// count, talk over channels and sleep, on several OS threads, without sockets.
package main

import (
	"fmt"
	"os"
	"sync"
	"time"
)

func main() {
	const workers = 400
	stop := make(chan struct{})
	counts := make([]uint64, workers)
	ring := make([]chan int, workers)
	for i := range ring {
		ring[i] = make(chan int)
	}
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			tick := time.NewTicker(time.Duration(1+i%7) * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case v := <-ring[i]:
					next := ring[(i+1)%workers]
					if v > 0 {
						wg.Go(func() { next <- v - 1 })
					}
				case <-tick.C:
					counts[i]++
				case <-stop:
					return
				}
			}
		})
	}
	ring[0] <- workers * 2
	put("ready", fmt.Sprint(os.Getpid()))
	for {
		if _, err := os.Stat("go"); err == nil {
			break
		}
		time.Sleep(2 * time.Millisecond)
	}
	before := append([]uint64(nil), counts...)
	time.Sleep(100 * time.Millisecond)
	stuck := 0
	for i := range counts {
		if counts[i] == before[i] {
			stuck++
		}
	}
	close(stop)
	if stuck > 0 {
		put("verdict", fmt.Sprintf("FAIL: %d goroutines do not tick\n", stuck))
		os.Exit(1)
	}
	put("verdict", "PASS\n")
}

func put(name, text string) {
	if err := os.WriteFile(name+".tmp", []byte(text), 0o644); err != nil {
		panic(err)
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		panic(err)
	}
}
