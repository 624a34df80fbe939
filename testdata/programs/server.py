# An HTTP server of asyncio with timers, a pool and processes of multiprocessing, shared memory and a child behind pipes.
import asyncio
import multiprocessing
import sys
from multiprocessing import shared_memory


def double(questions, answers, lock, total):
    while True:
        n = questions.get()
        with lock:
            total.value += 1
        answers.put(2 * n)


async def main(port):
    questions, answers = multiprocessing.Queue(), multiprocessing.Queue()
    lock, total = multiprocessing.Lock(), multiprocessing.Value("i", 0)
    memory = shared_memory.SharedMemory(create=True, size=4096)
    memory.buf[:2] = b"42"
    memory.unlink()  # nothing is left behind, whatever happens
    pool = multiprocessing.Pool(2)
    multiprocessing.Process(target=double, args=(questions, answers, lock, total), daemon=True).start()
    cat = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    loop = asyncio.get_running_loop()
    one_at_a_time = asyncio.Lock()
    state = {"count": 0, "ticks": 0}

    async def tick():
        while True:
            await asyncio.sleep(0.005)
            state["ticks"] += 1

    async def answer(path):
        if path == "/":
            return "hello"
        if path == "/ticks":
            return state["ticks"]
        if path == "/add":
            state["count"] += 1
        if path in ("/count", "/add"):
            return state["count"]
        if path == "/thread":
            return await loop.run_in_executor(None, lambda: sum(pool.map(abs, [-20, 20, -2])))
        if path == "/process":
            questions.put(21)
            return await loop.run_in_executor(None, answers.get)
        if path == "/memory":
            return bytes(memory.buf[:2]).decode()
        cat.stdin.write(b"42\n")
        return (await cat.stdout.readline()).decode().strip()

    async def serve(reader, writer):
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            async with one_at_a_time:
                text = str(await answer(line.split()[1].decode()))
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
            await writer.drain()
        writer.close()

    ticking = asyncio.create_task(tick())
    async with await asyncio.start_server(serve, "127.0.0.1", port) as server:
        await server.serve_forever()
    await ticking


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
