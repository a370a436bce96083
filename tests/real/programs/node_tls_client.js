// Node's two clients over TLS, `fetch` (undici) and `https.request` with a keep-alive agent, in turn: BASE_URL PLAN_FILE [BEFORE].
// With BEFORE it does as tls_talk.py. NODE_EXTRA_CA_CERTS names the CA.
const fs = require("node:fs");
const https = require("node:https");

const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });

async function byFetch(method, url, body) {
  const response = await fetch(url, { method, body: body || undefined });
  return [response.status, (await response.arrayBuffer()).byteLength, {}];
}

function byRequest(method, url, body) {
  return new Promise((resolve, reject) => {
    const headers = body ? { "Content-Length": Buffer.byteLength(body) } : {};
    const request = https.request(url, { method, agent, headers }, (response) => {
      const socket = response.socket;
      const tls = {
        version: socket.getProtocol(),
        cipher: socket.getCipher().standardName,
        alpn: socket.alpnProtocol,
        sni: socket.servername,
      };
      let size = 0;
      response.on("data", (chunk) => (size += chunk.length));
      response.on("end", () => resolve([response.statusCode, size, tls]));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.end(body || undefined);
  });
}

function line() {
  return new Promise((resolve) => process.stdin.once("data", resolve));
}

async function main() {
  const [base, path, before] = process.argv.slice(2);
  const plan = JSON.parse(fs.readFileSync(path, "utf8"));
  const told = [];
  for (const [index, [method, target, body]] of plan.entries()) {
    if (before && index === Number(before)) {
      console.log("open");
      await line();
    }
    const send = index % 2 ? byRequest : byFetch;
    const [status, size, tls] = await send(method, base + target, body);
    const entry = {
      method,
      target,
      status,
      response_body_bytes: size,
      request_body_bytes: Buffer.byteLength(body),
      ...tls,
    };
    if (!before) console.log(JSON.stringify(entry));
    else if (index >= Number(before)) told.push(entry);
  }
  if (before) {
    console.log(JSON.stringify(told));
    await line();
    process.exit(0);
  }
  agent.destroy();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
