"""Both ends of gRPC by grpcio: ``server PORT [CERTIFICATE KEY]``, or ``client HOST:PORT PLAN STREAMS BEFORE [CA]``, over TLS
where there is a certificate; a JSON line for each call that an end saw.

The messages are plain text; no stubs. PLAN is a list of ``{id, method, send, gzip, deadline_ms, cancel_after, metadata}``:

    Unary     the request
    Collect   of many requests how many they were, and their bytes together
    Produce   "COUNT SIZE": so many messages of that size
    Chat      each message with a "!" behind it
    Fail      "CODE MESSAGE": that status
    FailLate  the same after two messages
    Wait      one message, and then nothing until the client gives up
    Silent    not even that

After BEFORE calls the client says ``open`` and waits for a line. ``cancel_after`` counts responses.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

SERVICE = "netprofiler.test.Probe"
PATIENCE_SECONDS = 30.0
THREADS = 32
CODES = {code.value[0]: code for code in grpc.StatusCode}
OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.so_reuseport", 0)]
NAME = "localhost"
"""In the certificate, and asked for."""
lock = threading.Lock()


def tell(call: str, method: str, sent: list[bytes], received: list[bytes], code: int, message: str) -> None:
    entry = {
        "id": call,
        "method": method,
        "sent": [len(one) for one in sent],
        "received": [len(one) for one in received],
        "code": code,
        "message": message,
    }
    with lock:
        print(json.dumps(entry), flush=True)


def pattern(size: int, seed: str) -> bytes:
    count = size // (len(seed) + 8) + 1
    return "".join(f"{seed}:{number:06d}\n" for number in range(count)).encode()[:size]


class Probe(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.rpartition("/")[2]

        def handle(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
            metadata = dict(context.invocation_metadata())
            call = metadata["x-call"]
            if "x-gzip" in metadata:
                context.set_compression(grpc.Compression.Gzip)
            if method not in ("Silent", "Fail"):
                context.send_initial_metadata((("x-call", call),))
            sent: list[bytes] = []
            received: list[bytes] = []
            code, message = 0, ""

            def taken() -> Iterator[bytes]:
                for request in requests:
                    received.append(request)
                    yield request

            try:
                for response in self._answer(method, taken(), context):
                    sent.append(response)
                    yield response
                if not context.is_active():
                    code, message = 1, "gone"
                elif context.code() is not None:
                    code, message = context.code().value[0], context.details().decode()
            except grpc.RpcError:
                code, message = 1, "gone"
            finally:
                tell(call, method, sent, received, code, message)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _answer(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        if method == "Chat":
            for request in requests:
                yield request + b"!"
            return
        if method == "Collect":
            sizes = [len(request) for request in requests]
            yield f"{len(sizes)} {sum(sizes)}".encode()
            return
        request = next(requests)
        first, _, rest = request.decode().partition(" ")
        if method == "Unary":
            yield request
        elif method == "Produce":
            for number in range(int(first)):
                yield pattern(int(rest), str(number))
        elif method in ("Fail", "FailLate"):
            if method == "FailLate":
                yield b"one"
                yield b"two"
            context.set_code(CODES[int(first)])
            context.set_details(rest)
        elif method in ("Wait", "Silent"):
            gone = threading.Event()
            context.add_callback(gone.set)
            if method == "Wait":
                yield b"started"
            gone.wait(PATIENCE_SECONDS)
        else:
            context.set_code(grpc.StatusCode.UNIMPLEMENTED)
            context.set_details("no such method")


def serve(port: str, *secrets: str) -> None:
    server = grpc.server(ThreadPoolExecutor(THREADS), handlers=[Probe()], options=OPTIONS)
    if secrets:
        certificate, key = (Path(path).read_bytes() for path in secrets)
        bound = server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    assert bound == int(port)
    server.start()
    server.wait_for_termination()


def make(channel: grpc.Channel, call: dict[str, Any]) -> None:
    method, path = call["method"], f"/{SERVICE}/{call['method']}"
    sends = [message.encode() for message in call["send"]]
    metadata = [("x-call", call["id"]), *((name, value) for name, value in call.get("metadata", ()))]
    compression = None
    if call.get("gzip"):
        metadata.append(("x-gzip", "1"))
        compression = grpc.Compression.Gzip
    limits: Any = {
        "timeout": call.get("deadline_ms", 0) / 1000 or PATIENCE_SECONDS,
        "metadata": metadata,
        "compression": compression,
    }
    sent: list[bytes] = []
    received: list[bytes] = []
    replied: queue.SimpleQueue[bool] = queue.SimpleQueue()
    cancel_after = call.get("cancel_after", 0)

    def requests() -> Iterator[bytes]:
        for message in sends:
            sent.append(message)
            yield message
            if method == "Chat":
                replied.get()
        if method == "Chat" and cancel_after:
            replied.get()

    code, details = 0, ""
    try:
        if method in ("Unary", "Fail", "Silent"):
            sent = sends
            received.append(channel.unary_unary(path)(sends[0], **limits))
        elif method == "Collect":
            received.append(channel.stream_unary(path)(requests(), **limits))
        else:
            if method == "Chat":
                responses: Any = channel.stream_stream(path)(requests(), **limits)
            else:
                sent = sends
                responses = channel.unary_stream(path)(sends[0], **limits)
            for response in responses:
                received.append(response)
                if len(received) == cancel_after:
                    responses.cancel()
                replied.put(True)
    except grpc.RpcError as error:
        # It is a Call, too, though its type does not say so.
        code, details = error.code().value[0], error.details() or ""
    replied.put(True)
    tell(call["id"], method, sent, received, code, details)


def open_channel(address: str, ca: str | None) -> grpc.Channel:
    if ca is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    options = [*OPTIONS, ("grpc.ssl_target_name_override", NAME)]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(ca).read_bytes()), options)


def call_all(address: str, path: str, streams: int, before: int, ca: str | None = None) -> None:
    with open(path, encoding="utf-8") as file:
        plan = json.load(file)
    with open_channel(address, ca) as channel, ThreadPoolExecutor(streams) as pool:
        for call in plan[:before]:
            make(channel, call)
        if before:
            print("open", flush=True)
            sys.stdin.readline()
        for done in [pool.submit(make, channel, call) for call in plan[before:]]:
            done.result()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(*sys.argv[2:])
    else:
        call_all(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:])
