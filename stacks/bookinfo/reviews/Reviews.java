import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/** Reviews of a product. Version 1 shows no stars; 2 and 3 ask ratings for them, and show them black and red. */
public final class Reviews {
    private static final String VERSION = System.getenv().getOrDefault("VERSION", "v1");
    private static final String RATINGS = System.getenv().getOrDefault("RATINGS_URL", "http://ratings:9080");
    private static final int PORT = Integer.parseInt(System.getenv().getOrDefault("PORT", "9080"));

    private static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    private Reviews() {}

    public static void main(String[] arguments) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress(PORT), 0);
        server.createContext("/reviews/", exchange -> answer(exchange, 200, reviews(), true));
        server.createContext("/health", exchange -> answer(exchange, 200, "{}", false));
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.start();
        System.err.println("reviews " + VERSION + " listens on " + PORT);
    }

    private static String reviews() throws IOException {
        if (VERSION.equals("v1")) {
            return "{\"version\":\"v1\",\"reviews\":[{\"reviewer\":\"Reviewer1\",\"text\":\"Absolutely fun!\"}]}";
        }
        HttpRequest request = HttpRequest.newBuilder(URI.create(RATINGS + "/ratings/0")).build();
        try {
            HttpResponse<String> response = CLIENT.send(request, HttpResponse.BodyHandlers.ofString());
            String colour = VERSION.equals("v2") ? "black" : "red";
            return "{\"version\":\"" + VERSION + "\",\"colour\":\"" + colour + "\",\"stars\":" + response.body() + "}";
        } catch (InterruptedException interrupted) {
            throw new IOException(interrupted);
        }
    }

    private static void answer(HttpExchange exchange, int status, String text, boolean log) throws IOException {
        byte[] body = text.getBytes(StandardCharsets.UTF_8);
        exchange.getResponseHeaders().set("Content-Type", "application/json");
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
        if (log) {
            System.out.printf(
                    "{\"service\":\"reviews-%s\",\"method\":\"%s\",\"path\":\"%s\",\"status\":%d}%n",
                    VERSION, exchange.getRequestMethod(), exchange.getRequestURI(), status);
        }
    }
}
