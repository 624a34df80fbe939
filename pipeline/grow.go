package pipeline

// growStack makes the goroutine's stack large enough for most bodies, at once and while there is little on it. A goroutine
// begins with 2 KiB, and each time that is doubled on the way down into a body all frames so far are moved; in a process
// that lives for a few milliseconds that was a twentieth of its work.
func growStack()
