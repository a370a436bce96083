import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/** The JDK's own HTTP server: PORT. */
public final class Server {
  static byte[] pattern(int size, String seed) {
    StringBuilder text = new StringBuilder(size + 64);
    for (int number = 0; text.length() < size; number++) {
      text.append(seed).append(':').append(String.format("%06d", number)).append('\n');
    }
    return text.substring(0, size).getBytes(StandardCharsets.US_ASCII);
  }

  static void handle(HttpExchange exchange) throws IOException {
    String method = exchange.getRequestMethod();
    String target = exchange.getRequestURI().toString();
    String path = target.split("\\?")[0];
    byte[] received = exchange.getRequestBody().readAllBytes();
    int status = 200;
    byte[] body;
    if (path.startsWith("/bytes/") && (method.equals("GET") || method.equals("HEAD"))) {
      body = pattern(Integer.parseInt(path.substring("/bytes/".length())), path);
    } else if (path.equals("/echo") && (method.equals("POST") || method.equals("PUT"))) {
      body = received;
    } else {
      status = 404;
      body = "no such thing\n".getBytes(StandardCharsets.US_ASCII);
    }
    boolean empty = method.equals("HEAD") || body.length == 0;
    exchange.getResponseHeaders().set("Content-Type", "text/plain");
    exchange.sendResponseHeaders(status, empty ? -1 : body.length);
    if (!empty) {
      exchange.getResponseBody().write(body);
    }
    exchange.close();
    synchronized (System.out) {
      System.out.printf(
          "{\"method\":\"%s\",\"target\":\"%s\",\"status\":%d,\"response_body_bytes\":%d,\"request_body_bytes\":%d}%n",
          method, target, status, empty ? 0 : body.length, received.length);
      System.out.flush();
    }
  }

  public static void main(String[] args) throws IOException {
    HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(args[0])), 0);
    server.setExecutor(Executors.newFixedThreadPool(2));
    server.createContext("/", Server::handle);
    server.start();
  }
}
