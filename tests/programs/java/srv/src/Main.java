import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.IntStream;

/** In app.jar, since the images have no compiler: see CONTRIBUTING.md. */
public class Main {
    public static void main(String[] arguments) throws Exception {
        work();
        if (arguments[0].equals("serve")) {
            Files.writeString(Path.of("/tmp/ready"), "ready");
            new CountDownLatch(1).await();
        }
    }

    /** Enough rounds for both compilers, threads, lambdas, a mapped file and a child. */
    private static void work() throws Exception {
        var pool = Executors.newFixedThreadPool(2);
        Future<Long> sum = pool.submit(() ->
            IntStream.range(0, 20_000_000).mapToLong(i -> i ^ (i >>> 3)).filter(i -> i % 3 == 0).sum());
        var digest = MessageDigest.getInstance("SHA-256");
        for (int i = 0; i < 20_000; i++) {
            digest.update(Integer.toString(i).getBytes());
        }
        var file = Files.createTempFile("mapped", ".data");
        try (var channel = FileChannel.open(file, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            channel.map(FileChannel.MapMode.READ_WRITE, 0, 4096).put(0, (byte) 1);
        }
        Files.delete(file);
        var child = new ProcessBuilder("sh", "-c", "read line < /etc/hostname; echo $line").start();
        child.waitFor();
        System.out.println(sum.get() + " " + digest.digest()[0] + " " + child.exitValue());
        pool.shutdown();
    }
}
