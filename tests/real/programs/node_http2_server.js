// Node's http2 server, which answers like http_server.py: PORT [CERTIFICATE KEY]. Without a certificate it takes prior knowledge only.
const fs = require("node:fs");
const http2 = require("node:http2");

const { answer, handshake } = require("./node_answers.js");

const [port, certificate, key] = process.argv.slice(2);
const server = certificate
  ? http2.createSecureServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) })
  : http2.createServer();

server.on("stream", (stream, headers) => {
  const chunks = [];
  const told = handshake(stream.session.socket);
  stream.on("data", (chunk) => chunks.push(chunk));
  stream.on("end", () => {
    const received = Buffer.concat(chunks);
    const [method, target] = [headers[":method"], headers[":path"]];
    const [status, body] = answer(method, target, received);
    stream.respond({ ":status": status, "content-type": "text/plain", "content-length": body.length });
    stream.end(method === "HEAD" ? undefined : body);
    stream.on("close", () =>
      console.log(
        JSON.stringify({
          method,
          target,
          status,
          response_body_bytes: method === "HEAD" ? 0 : body.length,
          request_body_bytes: received.length,
          ...told,
        }),
      ),
    );
  });
});
server.listen(Number(port), "127.0.0.1");
