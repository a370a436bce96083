// Node's own http server: PORT.
const http = require("node:http");

const { answer } = require("./node_answers.js");

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
