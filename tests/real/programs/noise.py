"""What is not HTTP, at full speed: ``noise.py SECONDS``.

Says ``ready``; after a line on standard input it makes noise on sockets, a pipe and a file for SECONDS, says how many bytes went
through sockets (each of them sent once and received once) as JSON, and waits for one more line.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import tempfile
import threading
import time


def redis(number: int) -> bytes:
    key = f"key:{number:08d}"
    return f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n$5\r\nhello\r\n".encode()


def tls(number: int) -> bytes:
    """A ClientHello's start first, application data after it; the content is arbitrary."""
    body = random.Random(number).randbytes(400)
    kind = b"\x16\x03\x01" if number == 0 else b"\x17\x03\x03"
    return kind + len(body).to_bytes(2, "big") + body


def noise(number: int) -> bytes:
    body = bytearray(random.Random(number).randbytes(700))
    body[0] |= 0x80  # no method begins so; what is random should not be HTTP by chance
    return bytes(body)


def ping(number: int) -> bytes:
    return b"\x00\x00\x00\x04ping"


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


def main() -> None:
    seconds = float(sys.argv[1])
    kinds = {
        "redis": (tcp_pair(), redis),
        "tls": (tcp_pair(), tls),
        "random": (tcp_pair(), noise),
        "unix": (socket.socketpair(), noise),
        "binary": (tcp_pair(), ping),
    }
    pieces = {name: [make(n) for n in range(64)] for name, (_, make) in kinds.items()}
    sent = dict.fromkeys(kinds, 0)
    stop = 0.0

    def talk(name: str) -> None:
        (client, server), _ = kinds[name]
        number = 0
        while time.monotonic() < stop:
            data = pieces[name][min(number, 1) if name == "tls" else number % 64]
            for sender, receiver in ((client, server), (server, client)):
                sender.sendall(data)
                left = len(data)
                while left:
                    left -= len(receiver.recv(left))
                sent[name] += len(data)
            number += 1

    def write_files() -> None:
        """HTTP here, for it is in no socket and so must not be seen at all."""
        line = b"GET /not-a-socket HTTP/1.1\r\nHost: pipe\r\n\r\n"
        reader, writer = os.pipe()
        with tempfile.TemporaryFile(buffering=0) as file:
            while time.monotonic() < stop:
                os.write(writer, line)
                os.read(reader, len(line))
                file.write(line)
                file.seek(0)
                file.read(len(line))
                file.seek(0)
        os.close(reader)
        os.close(writer)

    print("ready", flush=True)
    sys.stdin.readline()
    stop = time.monotonic() + seconds
    threads = [threading.Thread(target=talk, args=(name,)) for name in kinds] + [threading.Thread(target=write_files)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(sent), flush=True)
    sys.stdin.readline()
    for (client, server), _ in kinds.values():
        client.close()
        server.close()


if __name__ == "__main__":
    main()
