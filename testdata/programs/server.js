// An HTTP server of node with a timer, a worker thread and child processes: one with an IPC channel, one behind pipes.
const { createServer } = require('http');
const { Worker } = require('worker_threads');
const { fork, spawn } = require('child_process');

if (process.argv[2] === 'child') {
  process.on('message', (n) => process.send(n + 2));
} else {
  let count = 0, ticks = 0;
  setInterval(() => ticks++, 5);
  const worker = new Worker('require("worker_threads").parentPort.on("message", function (n) { this.postMessage(n * 2) })', { eval: true });
  const child = fork(__filename, ['child']);
  const cat = spawn('cat');
  const answers = {
    '/': (say) => say('hello'),
    '/ticks': (say) => say(ticks),
    '/count': (say) => say(count),
    '/add': (say) => say(++count),
    '/thread': (say) => { worker.once('message', say); worker.postMessage(21); },
    '/process': (say) => { child.once('message', say); child.send(40); },
    '/pipe': (say) => { cat.stdout.once('data', say); cat.stdin.write('42'); },
    '/file': (say) => require('fs').readFile(__filename, (err, data) => say(err || data.length > 1000 ? 42 : data)),
  };
  const server = createServer((request, response) => answers[request.url]((text) => response.end(String(text))));
  server.keepAliveTimeout = 600e3;
  server.listen(Number(process.argv[2]), '127.0.0.1');
}
