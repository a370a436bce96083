// Stars for a product.
"use strict";

const http = require("node:http");

const port = Number(process.env.PORT || 9080);

http
  .createServer((request, response) => {
    const found = /^\/ratings\/(\d+)$/.exec(request.url);
    const status = found ? 200 : request.url === "/health" ? 204 : 404;
    const body = found ? JSON.stringify({ id: Number(found[1]), ratings: { Reviewer1: 5, Reviewer2: 4 } }) : "";
    response.writeHead(status, { "Content-Type": "application/json" });
    response.end(body);
    if (status !== 204) {
      console.log(JSON.stringify({ service: "ratings", method: request.method, path: request.url, status }));
    }
  })
  .listen(port, () => console.error(`ratings listens on ${port}`));

process.on("SIGTERM", () => process.exit(0));
