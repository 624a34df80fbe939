# multiprocessing: a manager that listens on a unix socket, queues over pipes, semaphores, connections by socket pairs.
import multiprocessing
import os
import tempfile
import time


def worker(shared, queue, connection, number):
    count = 0
    while True:
        count += 1
        shared[number] = count
        queue.put((number, count))
        while connection.poll(0.002):
            connection.send(("echo", connection.recv()))


def main():
    tempfile.tempdir = os.getcwd()
    manager = multiprocessing.Manager()
    shared = manager.dict()
    queue = multiprocessing.Queue()
    pipes = [multiprocessing.Pipe() for _ in range(3)]
    for number, (_, end) in enumerate(pipes):
        multiprocessing.Process(target=worker, args=(shared, queue, end, number), daemon=True).start()
    while len(dict(shared)) < 3:
        time.sleep(0.01)
    with open("ready.tmp", "w") as f:
        f.write("%d\n" % os.getpid())
    os.rename("ready.tmp", "ready")

    last = {}
    while not os.path.exists("go"):
        number, count = queue.get()
        if count <= last.get(number, 0):
            raise SystemExit("FAIL: %d after %d" % (count, last[number]))
        last[number] = count

    before = dict(shared)
    for end, _ in pipes:
        end.send("x")
    answers = [end.recv() for end, _ in pipes]
    deadline = time.monotonic() + 10
    while any(shared[n] <= before[n] for n in before) and time.monotonic() < deadline:
        queue.get()
    ok = answers == [("echo", "x")] * 3 and time.monotonic() < deadline
    with open("verdict", "w") as f:
        f.write("PASS\n" if ok else "FAIL: %r %r %r\n" % (answers, before, dict(shared)))
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(0 if ok else 1)


if __name__ == "__main__":
    main()
