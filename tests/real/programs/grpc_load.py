"""A gRPC service with delays and errors, and who calls it: ``server PORT``, or ``client PORT COUNT CALLERS``.

The client makes COUNT calls, CALLERS at a time over one channel, and says of each, a JSON line: method, code, and the seconds it
took. Every fourth is Slow (30 ms), every fourth Fail (INTERNAL), the others are Fast.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]

SERVICE = "netprofiler.test.Load"
METHODS = ("Fast", "Slow", "Fast", "Fail")
SLOW_SECONDS = 0.03
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.so_reuseport", 0)]


class Load(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.rpartition("/")[2]

        def answer(request: bytes, context: Any) -> bytes:
            if method == "Slow":
                time.sleep(SLOW_SECONDS)
            elif method == "Fail":
                context.abort(grpc.StatusCode.INTERNAL, "as asked")
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


def serve(port: int) -> None:
    server = grpc.server(ThreadPoolExecutor(16), handlers=[Load()], options=OPTIONS)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def call(port: int, count: int, callers: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:

        def one(number: int) -> dict[str, object]:
            method = METHODS[number % len(METHODS)]
            ask = channel.unary_unary(f"/{SERVICE}/{method}")
            code = 0
            began = time.perf_counter()
            try:
                ask(b"x" * 100, timeout=20, wait_for_ready=True)
            except grpc.RpcError as error:
                code = error.code().value[0]
            return {"method": method, "code": code, "seconds": time.perf_counter() - began}

        with ThreadPoolExecutor(callers) as pool:
            for told in pool.map(one, range(count)):
                print(json.dumps(told))


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(int(sys.argv[2]))
    else:
        call(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
