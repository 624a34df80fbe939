import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.Executors;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.atomic.AtomicLong;

/** An HTTP server of the JVM with a heap of 64 MiB that it can check, many threads that make garbage, and a child behind pipes. */
public class Server {
    public static void main(String[] args) throws Exception {
        byte[][] heap = new byte[1024][65536];
        Random random = new Random(1);
        for (byte[] block : heap) random.nextBytes(block);
        long sum = sum(heap);
        AtomicLong count = new AtomicLong(), ticks = new AtomicLong();
        for (int i = 0; i < 150; i++) thread(() -> {
            Thread.sleep(10);
            ticks.addAndGet(new byte[10_000].length / 10_000);
        });
        SynchronousQueue<Integer> questions = new SynchronousQueue<>(), answers = new SynchronousQueue<>();
        thread(() -> answers.put(2 * questions.take()));
        Process cat = new ProcessBuilder("cat").start();

        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            byte[] text;
            try {
                text = answer(exchange.getRequestURI().getPath(), heap, sum, count, ticks, questions, answers, cat).getBytes();
            } catch (Exception e) {
                text = e.toString().getBytes();
            }
            exchange.sendResponseHeaders(200, text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        server.start();
    }

    static String answer(String path, byte[][] heap, long sum, AtomicLong count, AtomicLong ticks,
            SynchronousQueue<Integer> questions, SynchronousQueue<Integer> answers, Process cat) throws Exception {
        switch (path) {
            case "/ticks": return "" + ticks.get();
            case "/count": return "" + count.get();
            case "/add": return "" + count.incrementAndGet();
            case "/heap": return sum(heap) == sum ? "42" : "the heap is not what it was";
            case "/collect": System.gc(); return "42";
            case "/thread": questions.put(21); return "" + answers.take();
            case "/pipe":
                cat.getOutputStream().write("42".getBytes());
                cat.getOutputStream().flush();
                return new String(cat.getInputStream().readNBytes(2));
            default: return "hello";
        }
    }

    static long sum(byte[][] heap) {
        long sum = 0;
        for (byte[] block : heap) sum = 31 * sum + Arrays.hashCode(block);
        return sum;
    }

    interface Step { void run() throws InterruptedException; }

    static void thread(Step step) {
        Thread t = new Thread(() -> {
            try {
                while (true) step.run();
            } catch (InterruptedException e) {
                throw new RuntimeException(e);
            }
        });
        t.setDaemon(true);
        t.start();
    }
}
