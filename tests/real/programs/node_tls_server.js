// Node's https server, which answers like http_server.py: PORT CERTIFICATE KEY VERSION.
const fs = require("node:fs");
const https = require("node:https");

const { answer } = require("./node_answers.js");

const [port, certificate, key, version] = process.argv.slice(2);
const options = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key), ALPNProtocols: ["http/1.1"] };
if (version) options.minVersion = options.maxVersion = `TLSv${version}`;

const server = https.createServer(options, (request, response) => {
  const chunks = [];
  const socket = request.socket;
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
          peer_port: socket.remotePort,
          version: socket.getProtocol(),
          cipher: socket.getCipher().standardName,
          ...(socket.isSessionReused() ? {} : { sni: socket.servername }),  // Node does not know it after a resumption
          alpn: socket.alpnProtocol,
        }),
      ),
    );
  });
});
server.keepAliveTimeout = 20000;
server.listen(Number(port), "127.0.0.1");
