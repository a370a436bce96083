// One end of a WebSocket conversation, by Node's `ws`: the arguments, the plan and the talk are those of websocket_python.py. Its line tells
// what came out of the library: messages, pings and pongs in their order, and the close.
const fs = require("node:fs");
const https = require("node:https");
const http = require("node:http");
const { WebSocket, WebSocketServer } = require("/usr/share/nodejs/ws"); // Debian's, which a Node of another origin does not look for

const [role, port, mode, closer, path, ...files] = process.argv.slice(2);
const plan = JSON.parse(fs.readFileSync(path, "utf8"));

// The threshold leaves small messages uncompressed between compressed ones.
const fresh = { serverNoContextTakeover: true, clientNoContextTakeover: true };
const perMessageDeflate = mode === "off" ? false : { threshold: 100, ...(mode === "fresh" ? fresh : {}) };

function bytes(text) {
  return Buffer.from(text, "base64");
}

// Returns the number of pings sent.
async function send(socket, part) {
  let pings = 0;
  for (const [index, message] of part.entries()) {
    if (message.kind === "ping") {
      socket.ping(bytes(message.fragments[0]));
      pings++;
    } else {
      const last = message.fragments.length - 1;
      for (const [number, fragment] of message.fragments.entries()) {
        if (number === 1 && message.between !== undefined) {
          socket.ping(bytes(message.between));
          pings++;
        }
        socket.send(bytes(fragment), { binary: message.kind === "binary", fin: number === last });
      }
    }
    if (index % 10 === 9) await new Promise(setImmediate); // so that not all goes out by one system call
  }
  return pings;
}

function converse(socket) {
  const other = role === "server" ? "client" : "server";
  let left = plan[other].filter((message) => message.kind !== "ping").length;
  let unanswered = Infinity;
  let pongs = 0;
  const got = [];
  const maybeClose = () => {
    if (closer === role && left === 0 && unanswered === pongs) socket.close(...plan.close);
  };
  socket.on("message", (data, isBinary) => {
    got.push([isBinary ? "binary" : "text", data.toString("base64")]);
    left--;
    maybeClose();
  });
  socket.on("ping", (data) => got.push(["ping", data.toString("base64")]));
  socket.on("pong", (data) => {
    got.push(["pong", data.toString("base64")]);
    pongs++;
    maybeClose();
  });
  socket.on("close", (code, reason) => {
    console.log(JSON.stringify({ got, close: [code, reason.toString()] }));
  });
  socket.on("error", (error) => {
    console.error(error);
    process.exit(1);
  });
  send(socket, plan[role]).then((pings) => {
    unanswered = pings;
    maybeClose();
  });
}

if (role === "client") {
  const tls = files.length ? { ca: fs.readFileSync(files[0]) } : {};
  const url = `${files.length ? "wss" : "ws"}://localhost:${port}/talk?mode=${mode}`;
  const socket = new WebSocket(url, { perMessageDeflate, family: 4, ...tls });
  socket.on("open", () => converse(socket));
  socket.on("error", (error) => {
    console.error(error);
    process.exit(1);
  });
} else {
  const server = files.length
    ? https.createServer({ cert: fs.readFileSync(files[0]), key: fs.readFileSync(files[1]) })
    : http.createServer();
  new WebSocketServer({ server, perMessageDeflate }).on("connection", converse);
  server.listen(Number(port), "127.0.0.1");
}
