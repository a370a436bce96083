// Node's http2 client, all on one session, N requests at a time: BASE_URL PLAN_FILE N [CA].
const fs = require("node:fs");
const http2 = require("node:http2");

const { handshake } = require("./node_answers.js");

function ask(session, method, target, body) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": method, ":path": target }, { endStream: !body });
    let status = 0;
    let size = 0;
    stream.on("response", (headers) => (status = headers[":status"]));
    stream.on("data", (chunk) => (size += chunk.length));
    stream.on("end", () => resolve([status, size]));
    stream.on("error", reject);
    if (body) stream.end(body);
  });
}

async function main() {
  const [base, path, streams, ca] = process.argv.slice(2);
  const plan = JSON.parse(fs.readFileSync(path, "utf8"));
  const session = http2.connect(base, ca ? { ca: fs.readFileSync(ca) } : {});
  const left = plan[Symbol.iterator]();
  async function work() {
    for (const [method, target, body] of left) {
      const [status, size] = await ask(session, method, target, body);
      console.log(
        JSON.stringify({
          method,
          target,
          status,
          response_body_bytes: size,
          request_body_bytes: Buffer.byteLength(body),
          ...handshake(session.socket),
        }),
      );
    }
  }
  await Promise.all(Array.from({ length: Number(streams) }, work));
  session.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
