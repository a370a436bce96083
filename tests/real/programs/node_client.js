// Node's two clients, `fetch` (undici) and `http.request` with a keep-alive agent, in turn: BASE_URL PLAN_FILE.
const fs = require("node:fs");
const http = require("node:http");

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

async function byFetch(method, url, body) {
  const response = await fetch(url, { method, body: body || undefined });
  return [response.status, (await response.arrayBuffer()).byteLength];
}

function byRequest(method, url, body) {
  return new Promise((resolve, reject) => {
    const headers = body ? { "Content-Length": Buffer.byteLength(body) } : {};
    const request = http.request(url, { method, agent, headers }, (response) => {
      let size = 0;
      response.on("data", (chunk) => (size += chunk.length));
      response.on("end", () => resolve([response.statusCode, size]));
      response.on("error", reject);
    });
    request.on("error", reject);
    request.end(body || undefined);
  });
}

async function main() {
  const plan = JSON.parse(fs.readFileSync(process.argv[3], "utf8"));
  for (const [index, [method, target, body]] of plan.entries()) {
    const send = index % 2 ? byRequest : byFetch;
    const [status, size] = await send(method, process.argv[2] + target, body);
    console.log(
      JSON.stringify({
        method,
        target,
        status,
        response_body_bytes: size,
        request_body_bytes: Buffer.byteLength(body),
      }),
    );
  }
  agent.destroy();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
