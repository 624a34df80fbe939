"""Threads, a subprocess, a deleted open file, generators and open pipes in one interpreter."""
import os, queue, subprocess, sys, tempfile, threading, time

dir_fd = os.open(".", os.O_RDONLY)


def wait_go():
    while not os.path.exists("go"):
        time.sleep(0.002)


def put(name, text):
    with open(name + ".tmp", "w") as f:
        f.write(text)
    os.rename(name + ".tmp", name)


def numbers():
    n = 0
    while True:
        n += 1
        yield n


def worker(n, out):
    total = 0
    for i in numbers():
        total += i
        if i > 1000 and os.path.exists("go"):
            break
        time.sleep(0.0005)
    out.put((n, threading.current_thread().name))


results = queue.Queue()
threads = [threading.Thread(target=worker, args=(i, results), name="w%d" % i) for i in range(12)]
for t in threads:
    t.start()
child = subprocess.Popen([sys.executable, "-c", "import sys\nfor l in sys.stdin: print(l.strip()[::-1], flush=True)"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
child.stdin.write("before\n")
child.stdin.flush()
assert child.stdout.readline() == "erofeb\n"
gone = tempfile.TemporaryFile(dir=".")
gone.write(b"deleted" * 1000)
gone.flush()
kept = open("data.txt", "w+")
kept.write("line one\n")
kept.flush()
put("ready", str(os.getpid()))
wait_go()
try:
    for t in threads:
        t.join()
    assert sorted(results.get()[0] for _ in threads) == list(range(12)), "threads"
    child.stdin.write("after\n")
    child.stdin.flush()
    assert child.stdout.readline() == "retfa\n", "subprocess"
    child.stdin.close()
    assert child.wait() == 0, "subprocess status"
    gone.seek(0)
    assert gone.read() == b"deleted" * 1000, "deleted file"
    kept.write("line two\n")
    kept.seek(0)
    assert kept.read() == "line one\nline two\n", "file"
except BaseException as e:
    put("verdict", "FAIL: %r\n" % (e,))
    raise
put("verdict", "PASS\n")
