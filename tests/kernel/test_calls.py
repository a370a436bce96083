"""Every call that sends against every call that receives, with the ways in which each can surprise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.harness import (
    ARRIVAL_SECONDS,
    Agent,
    BodyCheck,
    Calls,
    Record,
    Run,
    check_never_wrong,
    check_run,
    exact_body,
    missing_body,
    pattern,
    prefix_body,
    sides,
    wait_until,
)

pytestmark = pytest.mark.kernel

SENDS = ("write", "writev", "sendto", "sendmsg", "sendmmsg", "sendfile", "splice")
RECEIVES = ("read", "readv", "recvfrom", "recvmsg", "recvmmsg", "splice")
TRANSPORTS = ("ipv4", "ipv6", "mapped", "unix", "abstract", "pair")
BODY_BYTES = 10240

runs: list[tuple[Run, int]] = []
"""Every run and how many records it has: looked at once more at the end."""


MAYBE_SECONDS = 1.0
"""How long is waited for a record that may be missing, when the server's, which are all there, have come: four times
connection.HOLD_NS.
"""


def observe(agent: Agent, run: Run, count: int | None = None, seconds: float = ARRIVAL_SECONDS) -> list[Record]:
    expected = 4 * len(run.client) if count is None else count
    records = agent.wait_for(run.pids, expected, seconds)
    runs.append((run, len(records)))
    return records


def observe_perhaps(agent: Agent, run: Run) -> list[Record]:
    """Of a run in which the client's records may be fewer."""
    agent.wait_for([run.server_pid], 2 * len(run.client))
    return observe(agent, run, seconds=MAYBE_SECONDS)


def get(name: str, size: int = 17, count: int = 1) -> list[str]:
    return ["--target", f"/{name}?bytes={size}", "--requests", str(count)]


def post(name: str, size: int = BODY_BYTES, answer: int = BODY_BYTES, count: int = 1) -> list[str]:
    return [*get(name, answer, count), "--method", "POST", "--body-bytes", str(size)]


def sent_by(call: str) -> BodyCheck:
    return missing_body(call) if call in {"sendfile", "splice"} else exact_body


def received_by(call: str) -> BodyCheck:
    return missing_body("splice") if call == "splice" else exact_body


@pytest.mark.parametrize("receive", RECEIVES)
@pytest.mark.parametrize("send", SENDS)
def test_send_and_receive(agent: Agent, calls: Calls, tmp_path: Path, send: str, receive: str) -> None:
    """A GET, and POSTs of 10 KB, on connections of their own; both sides use the same two calls."""
    both = ["--send", send, "--receive", receive, "--iovec-bytes", "4000"]
    client = [*both, "--file", str(tmp_path / "q")]
    server = [*both, "--file", str(tmp_path / "a")]
    for options in (get(f"{send}-{receive}"), post(f"{send}-{receive}", count=3)):
        run = calls.run([*client, *options], server)
        check_run(
            observe(agent, run),
            run,
            client_sends=sent_by(send),
            server_sends=sent_by(send),
            client_receives=received_by(receive),
            server_receives=received_by(receive),
        )


@pytest.mark.parametrize(
    ("send", "receive"),
    [("write", "recvmsg"), ("writev", "read"), ("sendto", "recvmmsg"), ("sendmsg", "readv"), ("sendmmsg", "recvfrom")],
)
@pytest.mark.parametrize("address", TRANSPORTS, indirect=True)
def test_transport(agent: Agent, calls: Calls, address: str, send: str, receive: str) -> None:
    both = ["--send", send, "--receive", receive, "--iovec-bytes", "4000"]
    run = calls.run([*both, *post(f"transport-{send}", count=2)], both, address)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("address", ["unix", "pair"], indirect=True)
@pytest.mark.parametrize("send", ["sendfile", "splice"])
def test_unseen_bytes_on_unix_sockets(agent: Agent, calls: Calls, address: str, send: str, tmp_path: Path) -> None:
    """No sequence numbers there: what was skipped is known from the call's own count."""
    both = ["--send", send, "--receive", "splice"]
    run = calls.run(
        [*both, "--file", str(tmp_path / "q"), *post(f"unix-{send}", count=3)],
        [*both, "--file", str(tmp_path / "a")],
        address,
    )
    check_run(
        observe(agent, run),
        run,
        client_sends=missing_body(send),
        server_sends=missing_body(send),
        client_receives=missing_body("splice"),
        server_receives=missing_body("splice"),
    )


# ---- the vectors ----


@pytest.mark.parametrize("send", ["writev", "sendmsg", "sendmmsg"])
def test_head_and_body_are_two_iovecs(agent: Agent, calls: Calls, send: str) -> None:
    both = ["--send", send, "--receive", "readv", "--iovec-bytes", "0"]
    run = calls.run([*both, *post(f"split-{send}", count=2)], both)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("receive", ["readv", "recvmsg"])
@pytest.mark.parametrize("send", ["writev", "sendmsg", "sendmmsg"])
def test_many_iovecs(agent: Agent, calls: Calls, send: str, receive: str) -> None:
    """104 of 100 bytes in a call: the start of the body, every byte counted, the next message whole."""
    both = ["--send", send, "--receive", receive, "--iovec-bytes", "100"]
    run = calls.run([*both, "--special-request", "1", *post(f"many-{send}", count=3)], both)
    check_run(
        observe(agent, run),
        run,
        client_sends=prefix_body,
        server_sends=prefix_body,
        client_receives=prefix_body,
        server_receives=prefix_body,
    )


@pytest.mark.parametrize("call", ["writev", "sendmsg", "sendmmsg"])
def test_empty_iovecs_between(agent: Agent, calls: Calls, call: str) -> None:
    both = ["--send", call, "--receive", "readv", "--iovec-bytes", "3000", "--empty-iovecs"]
    run = calls.run([*both, *post(f"empty-{call}", count=2)], both)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("call", ["writev", "sendmsg", "sendmmsg"])
def test_one_byte_iovecs(agent: Agent, calls: Calls, call: str) -> None:
    """More iovecs than any bound, in the middle of the head: never wrong, and the next is whole."""
    both = ["--send", call, "--receive", "recvfrom", "--iovec-bytes", "1"]
    run = calls.run([*both, "--special-request", "1", *post(f"bytes-{call}", 700, 700, 3)], ["--receive", "read"])
    records = observe(agent, run)
    check_never_wrong(records, run)
    requests, responses = sides(records, run.server_pid)
    assert [record["headers"]["X-Exchange"] for record in requests] == ["0", "1", "2"]
    assert [record.get("body") for record in requests] == [pattern(700, "q", index) for index in range(3)]
    assert len(responses) == 3
    own = {record["headers"]["X-Exchange"]: record for record in sides(records, run.client_pid)[0]}
    assert own["2"]["completeness"] == "complete"
    assert own["2"]["body"] == pattern(700, "q", 2)


@pytest.mark.parametrize("address", ["ipv4", "unix"], indirect=True)
def test_one_byte_iovecs_both_ways(agent: Agent, calls: Calls, address: str) -> None:
    """What the first bytes are has to be found out over many iovecs, again and again."""
    both = ["--send", "writev", "--receive", "readv", "--iovec-bytes", "1"]
    run = calls.run([*both, *get("tiny", 9, 20)], both, address)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("address", ["ipv4", "unix"], indirect=True)
def test_many_messages_in_a_call(agent: Agent, calls: Calls, address: str) -> None:
    """More than 64 messages of one sendmmsg, each of one iovec: counted to the byte, whatever is shown."""
    both = ["--send", "sendmmsg", "--receive", "recvmmsg", "--iovec-bytes", "100", "--messages", "200"]
    run = calls.run([*both, *post("messages", count=3)], both, address)
    assert all(truth.sends == 1 for truth in (*run.client, *run.server))
    check_run(
        observe(agent, run),
        run,
        client_sends=prefix_body,
        server_sends=prefix_body,
        client_receives=prefix_body,
        server_receives=prefix_body,
    )


@pytest.mark.parametrize("address", ["ipv4", "unix"], indirect=True)
def test_short_message_before_another(agent: Agent, calls: Calls, address: str) -> None:
    """recvmmsg without MSG_WAITFORONE: the first message is not filled, and the second has bytes all the same."""
    both = ["--receive", "recvmmsg", "--messages", "2", "--wait-messages", "--iovec-bytes", "4000"]
    run = calls.run(
        [*both, "--body-delay-ms", "60", *post("short-message", 3000, 3000, 2)],
        [*both, "--body-delay-ms", "60"],
        address,
    )
    assert all(truth.receives == 1 for truth in (*run.client, *run.server)), run
    check_run(observe(agent, run), run)


# ---- files ----


@pytest.mark.parametrize("options", [[], ["--offset-pointer"], ["--send-bytes", "3000"]], ids=" ".join)
@pytest.mark.parametrize("send", ["sendfile", "splice"])
def test_body_from_a_file(agent: Agent, calls: Calls, tmp_path: Path, send: str, options: list[str]) -> None:
    """At an offset of 1000, by pointer and by file position, in one call and in several."""
    both = ["--send", send, "--file-offset", "1000", *options]
    run = calls.run(
        [*both, "--file", str(tmp_path / "q"), *post(f"file-{send}", count=2)],
        [*both, "--file", str(tmp_path / "a")],
    )
    check_run(observe(agent, run), run, client_sends=missing_body(send), server_sends=missing_body(send))


@pytest.mark.parametrize("options", [[], ["--offset-pointer"]], ids=" ".join)
def test_untouched_file_is_read_back(agent: Agent, calls: Calls, tmp_path: Path, options: list[str]) -> None:
    """A file that was old when it was sent, and is still the same: the start of the body is shown all the same."""
    run = calls.run(
        get("untouched", BODY_BYTES),
        [
            "--send",
            "sendfile",
            "--file",
            str(tmp_path / "a"),
            "--file-offset",
            "1000",
            "--file-age-ms",
            "300",
            *options,
        ],
    )
    records = observe(agent, run)
    check_run(records, run, server_sends=missing_body("sendfile"))
    (response,) = sides(records, run.server_pid)[1]
    assert response["body"] == pattern(BODY_BYTES, "a", 0)[:4096]


def perhaps_spoiled(record: Record, body: str, limit: int) -> None:
    """sendfile sends pages, not copies: on loopback the receiver may read what was written over them meanwhile."""
    shown = record["body"]
    assert len(shown) == len(body[:limit]), record
    assert all(seen in (sent, "X") for seen, sent in zip(shown, body, strict=False)), record
    assert record["body_bytes"] == len(body)


def test_file_is_overwritten_after_sendfile(agent: Agent, calls: Calls, tmp_path: Path) -> None:
    """What the file holds now is not what was sent."""
    both = ["--send", "sendfile", "--spoil-file"]
    run = calls.run(
        [*both, "--file", str(tmp_path / "q"), *post("spoiled", count=3)],
        [*both, "--file", str(tmp_path / "a")],
    )
    check_run(
        observe(agent, run),
        run,
        client_sends=missing_body("sendfile"),
        server_sends=missing_body("sendfile"),
        client_receives=perhaps_spoiled,
        server_receives=perhaps_spoiled,
    )


@pytest.mark.parametrize("send", ["sendfile", "splice"])
def test_head_from_a_file(agent: Agent, calls: Calls, tmp_path: Path, send: str) -> None:
    """The sender's record may be missing; the receiver's is whole, and the neighbours are never mixed up."""
    run = calls.run(
        [
            *("--send", send, "--whole-file", "--file", str(tmp_path / "q"), "--special-request", "1"),
            *post(f"whole-{send}", count=3),
        ]
    )
    records = observe_perhaps(agent, run)
    check_never_wrong(records, run)
    assert [len(half) for half in sides(records, run.server_pid)] == [3, 3]
    requests, responses = sides(records, run.client_pid)
    own = {record["headers"]["X-Exchange"]: record for record in requests}
    assert {"0", "2"} <= set(own)
    for index in ("0", "2"):
        exact_body(own[index], pattern(BODY_BYTES, "q", int(index)), 4096)
    assert [record["headers"]["X-Exchange"] for record in responses] == ["0", "1", "2"]
    # How many requests the unseen bytes were cannot be known: what follows may stay unpaired, but is never paired wrongly.
    assert responses[0]["exchange"] == own["0"]["exchange"]
    for record in responses:
        others = {request["exchange"] for index, request in own.items() if index != record["headers"]["X-Exchange"]}
        assert record["exchange"] not in others


def test_head_into_a_pipe(agent: Agent, calls: Calls) -> None:
    """A response received by splice from its first byte on."""
    run = calls.run(
        ["--receive", "splice", "--whole-file", "--special-request", "1", *post("whole-receive", 100, 100, 3)]
    )
    records = observe_perhaps(agent, run)
    check_never_wrong(records, run)
    assert [len(half) for half in sides(records, run.server_pid)] == [3, 3]
    responses = {record["headers"]["X-Exchange"]: record for record in sides(records, run.client_pid)[1]}
    assert {"0", "2"} <= set(responses)
    assert responses["2"]["body"] == pattern(100, "a", 2)


# ---- flags ----


@pytest.mark.parametrize("receive", ["read", "recvfrom", "recvmsg", "recvmmsg"])
@pytest.mark.parametrize("address", ["ipv4", "unix"], indirect=True)
def test_peeked_bytes_are_no_data(agent: Agent, calls: Calls, address: str, receive: str) -> None:
    both = ["--receive", receive, "--peek", "--receive-bytes", "3000", "--iovec-bytes", "4000"]
    run = calls.run([*both, *post(f"peek-{receive}", count=2)], both, address)
    assert all(truth.peeks >= 4 for truth in (*run.client, *run.server))
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("mode", ["--nonblocking", "--dontwait"])
@pytest.mark.parametrize("receive", ["read", "recvfrom", "recvmsg", "recvmmsg"])
def test_nothing_there_yet(agent: Agent, calls: Calls, receive: str, mode: str) -> None:
    """EAGAIN in between, before the head and before the body."""
    if receive == "read" and mode == "--dontwait":
        mode = "--nonblocking"
    both = ["--receive", receive, mode, "--iovec-bytes", "4000", "--body-delay-ms", "30"]
    run = calls.run([*both, *post(f"again-{receive}", 5000, 5000, 2)], [*both, "--delay-ms", "30"])
    assert all(truth.again >= 1 for truth in (*run.client, *run.server)), run
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("send", ["write", "writev", "sendto", "sendmsg", "sendmmsg", "sendfile"])
def test_short_counts(agent: Agent, calls: Calls, tmp_path: Path, send: str) -> None:
    """300 KB into a socket that takes 4 KiB: what a call took counts, not what it was offered."""
    both = ["--send", send, "--small-buffers", "--nonblocking", "--iovec-bytes", "4000"]
    run = calls.run(
        [*both, "--file", str(tmp_path / "q"), "--read-delay-ms", "40", *post(f"short-{send}", 300_000, 300_000, 2)],
        [*both, "--file", str(tmp_path / "a"), "--delay-ms", "20"],
    )
    assert any(truth.again for truth in (*run.client, *run.server))
    if send != "sendfile":
        assert any(truth.short_sends > 1 for truth in (*run.client, *run.server))
    check_run(observe(agent, run), run, client_sends=sent_by(send), server_sends=sent_by(send))


@pytest.mark.parametrize("address", ["ipv4", "unix"], indirect=True)
@pytest.mark.parametrize(("send", "receive"), [("write", "read"), ("sendmsg", "recvmsg"), ("sendto", "recvfrom")])
def test_one_byte_a_call(agent: Agent, calls: Calls, address: str, send: str, receive: str) -> None:
    both = ["--send", send, "--send-bytes", "1", "--receive", receive, "--receive-bytes", "1"]
    run = calls.run([*both, *post(f"byte-{send}", 50, 50, 2)], both, address)
    assert all(truth.sends > 50 and truth.receives > 50 for truth in (*run.client, *run.server))
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("receive", ["recvfrom", "recvmsg"])
def test_waitall(agent: Agent, calls: Calls, receive: str) -> None:
    both = ["--receive", receive, "--waitall", "--send-bytes", "3000", "--iovec-bytes", "20000"]
    run = calls.run([*both, *post(f"waitall-{receive}", count=2)], both)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("receive", ["recvfrom", "recvmsg"])
def test_discarded_bytes(agent: Agent, calls: Calls, receive: str) -> None:
    """MSG_TRUNC on TCP takes bytes off the stream and copies none: the buffer holds something else."""
    both = ["--receive", receive, "--trunc", "--iovec-bytes", "4000"]
    run = calls.run([*both, *post(f"trunc-{receive}", count=3)], both)
    records = observe(agent, run)
    assert not [record for record in records if "SSSS" in record.get("raw_payload", "")]
    check_run(records, run, client_receives=missing_body("unknown"), server_receives=missing_body("unknown"))


@pytest.mark.parametrize("receive", ["recvfrom", "recvmsg"])
def test_truncation_means_nothing_on_unix_streams(agent: Agent, calls: Calls, tmp_path: Path, receive: str) -> None:
    """There MSG_TRUNC is ignored, and the bytes are copied."""
    both = ["--receive", receive, "--trunc", "--iovec-bytes", "4000"]
    run = calls.run([*both, *post(f"trunc-{receive}", count=3)], both, f"unix:{tmp_path}/socket")
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("send", ["sendto", "sendmsg", "sendmmsg"])
def test_zero_copy(agent: Agent, calls: Calls, send: str) -> None:
    """The notice on the error queue is read from the socket and is no data."""
    both = ["--send", send, "--zerocopy", "--iovec-bytes", "4000"]
    run = calls.run([*both, *post(f"zerocopy-{send}", count=3)], both)
    assert any(truth.notices for truth in run.client)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("send", ["sendto", "sendmsg", "sendmmsg"])
def test_more_to_come(agent: Agent, calls: Calls, send: str) -> None:
    both = ["--send", send, "--more", "--iovec-bytes", "4000"]
    run = calls.run([*both, *post(f"more-{send}", 3000, 3000, count=2)], both)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("address", TRANSPORTS, indirect=True)
def test_shutdown_before_the_answer(agent: Agent, calls: Calls, address: str) -> None:
    run = calls.run(["--shutdown", *post("shutdown", count=2)], ["--delay-ms", "20"], address)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("address", TRANSPORTS, indirect=True)
@pytest.mark.parametrize("receive", ["read", "recvmsg"])
def test_body_that_ends_with_the_connection(agent: Agent, calls: Calls, address: str, receive: str) -> None:
    """The end of the stream counts as one position on TCP, and is no byte."""
    run = calls.run(
        ["--receive", receive, "--iovec-bytes", "4000", *get("until-close", 3000)], ["--close-framing"], address
    )
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("address", TRANSPORTS, indirect=True)
def test_read_after_a_reset(agent: Agent, calls: Calls, address: str) -> None:
    """The answer lies in the receive buffer when the reset comes, and is read after it."""
    run = calls.run(["--read-delay-ms", "60", *get("reset", 3000)], ["--reset"], address)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("address", ["ipv4", "ipv6"], indirect=True)
def test_connect_in_progress(agent: Agent, calls: Calls, address: str) -> None:
    run = calls.run(["--nonblocking-connect", *post("in-progress", 100, 100)], [], address)
    check_run(observe(agent, run), run)


@pytest.mark.parametrize("address", ["ipv4", "unix"], indirect=True)
def test_a_mebibyte_each_way(agent: Agent, calls: Calls, address: str) -> None:
    size = 1 << 20
    run = calls.run(post("mebibyte", size, size, 3), [], address)
    check_run(observe(agent, run), run)


# ---- calls that nobody promised ----


@pytest.mark.parametrize("address", ["ipv4", "unix"], indirect=True)
@pytest.mark.parametrize("call", [["--send", "pwritev2"], ["--receive", "preadv2"]], ids=" ".join)
def test_calls_that_are_not_watched(agent: Agent, calls: Calls, address: str, call: list[str]) -> None:
    """preadv2 and pwritev2 with offset -1 move stream bytes too: never wrong, the other side whole."""
    run = calls.run(
        [*call, "--special-request", "1", "--iovec-bytes", "4000", *post("unwatched", count=3)], [], address
    )
    records = observe_perhaps(agent, run)
    check_never_wrong(records, run)
    assert [len(half) for half in sides(records, run.server_pid)] == [3, 3]
    requests, responses = sides(records, run.client_pid)
    for half in (requests, responses):
        assert {"0", "2"} <= {record["headers"]["X-Exchange"] for record in half}


# ---- another's server ----


def test_python_http_server(agent: Agent, calls: Calls, tmp_path: Path) -> None:
    """Its own access log is the truth."""
    (tmp_path / "page.txt").write_text(pattern(BODY_BYTES, "a", 0))
    log = tmp_path / "access.log"
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert server.stdout is not None
        with server.stdout:
            port = server.stdout.readline().split("port ")[1].split()[0]
            for options in (
                ["--target", "/page.txt"],
                ["--target", "/nothing", "--send", "writev"],
                ["--target", "/page.txt", "--method", "HEAD", "--shutdown"],
                ["--target", "/page.txt", "--method", "POST", "--body-bytes", "3000", "--send", "sendmmsg"],
            ):
                subprocess.run(
                    [str(calls.binary), "request", f"127.0.0.1:{port}", *options],
                    capture_output=True,
                    text=True,
                    timeout=20,
                    check=False,
                )
    finally:
        server.terminate()
        server.wait(5)
    assert wait_until(lambda: len(agent.of([server.pid])) >= 8, ARRIVAL_SECONDS)
    requests, responses = sides(agent.of([server.pid]), server.pid)
    truth = [line.split('"') for line in log.read_text().splitlines() if '"' in line]
    expected = [(parts[1].split()[0], parts[1].split()[1], int(parts[2].split()[0])) for parts in truth]
    by_exchange = {record["exchange"]: record for record in responses}
    seen = [(r["method"], r["url"], by_exchange[r["exchange"]]["status_code"]) for r in requests]
    assert seen == expected
    assert expected == [
        ("GET", "/page.txt", 200),
        ("GET", "/nothing", 404),
        ("HEAD", "/page.txt", 200),
        ("POST", "/page.txt", 501),
    ]
    page = by_exchange[requests[0]["exchange"]]
    assert page["body"] == pattern(BODY_BYTES, "a", 0)[:4096]
    assert page["body_bytes"] == BODY_BYTES
    assert page["protocol"] == "HTTP/1.0"
    assert by_exchange[requests[2]["exchange"]]["body_bytes"] == 0
    assert requests[3]["role"] == "server"


# ---- last ----


def test_nothing_came_late(agent: Agent, calls: Calls) -> None:
    """No run has more records now than when it was looked at."""
    run = calls.run(get("last"))
    check_run(observe(agent, run), run)
    late = {
        run.client[0].target: (count, len(agent.of(run.pids)))
        for run, count in runs
        if len(agent.of(run.pids)) != count
    }
    assert not late
