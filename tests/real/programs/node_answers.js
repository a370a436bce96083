// What the test servers in Node answer, the same as http_server.py.

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

// What a socket says of its TLS.
function handshake(socket) {
  if (!socket.encrypted) return {};
  return {
    version: socket.getProtocol(),
    cipher: socket.getCipher().standardName,
    sni: socket.servername,
    alpn: socket.alpnProtocol,
  };
}

module.exports = { answer, handshake };
