import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;

/** The JDK's own HTTP client: BASE_URL PLAN_FILE VERSION, a line of the plan being METHOD TAB TARGET TAB FILE_OF_THE_BODY. */
public final class Client {
  public static void main(String[] args) throws Exception {
    HttpClient.Builder builder = HttpClient.newBuilder().connectTimeout(Duration.ofSeconds(10));
    if (args[2].equals("HTTP_1_1")) {
      builder.version(HttpClient.Version.HTTP_1_1);
    }
    HttpClient client = builder.build();
    for (String line : Files.readAllLines(Path.of(args[1]))) {
      String[] part = line.split("\t");
      Path file = Path.of(part[2]);
      HttpRequest.BodyPublisher body =
          Files.size(file) == 0 ? HttpRequest.BodyPublishers.noBody() : HttpRequest.BodyPublishers.ofFile(file);
      HttpRequest request =
          HttpRequest.newBuilder(URI.create(args[0] + part[1]))
              .method(part[0], body)
              .timeout(Duration.ofSeconds(20))
              .build();
      HttpResponse<byte[]> response = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
      System.out.printf(
          "{\"method\":\"%s\",\"target\":\"%s\",\"status\":%d,\"response_body_bytes\":%d,\"request_body_bytes\":%d}%n",
          part[0], part[1], response.statusCode(), response.body().length, Files.size(file));
    }
    System.exit(0);
  }
}
