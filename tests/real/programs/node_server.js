// Node's own http server: PORT.
const http = require("node:http");

function pattern(size, seed) {
  let text = "";
  for (let number = 0; text.length < size; number++) {
    text += `${seed}:${String(number).padStart(6, "0")}\n`;
  }
  return Buffer.from(text.slice(0, size));
}

function answer(method, target, body) {
  const path = target.split("?")[0];
  if (path.startsWith("/bytes/") && (method === "GET" || method === "HEAD")) {
    return [200, pattern(Number(path.slice("/bytes/".length)), path)];
  }
  if (path === "/echo" && (method === "POST" || method === "PUT")) return [200, body];
  return [404, Buffer.from("no such thing\n")];
}

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const received = Buffer.concat(chunks);
    const [status, body] = answer(request.method, request.url, received);
    response.writeHead(status, { "Content-Type": "text/plain", "Content-Length": body.length });
    response.end(request.method === "HEAD" ? undefined : body);
    response.on("finish", () =>
      console.log(
        JSON.stringify({
          method: request.method,
          target: request.url,
          status,
          response_body_bytes: request.method === "HEAD" ? 0 : body.length,
          request_body_bytes: received.length,
        }),
      ),
    );
  });
});
server.listen(Number(process.argv[2]), "127.0.0.1");
