"""A recording made live says the same again without root, and so does a packet capture of the same traffic."""

from __future__ import annotations

import json
import re
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from netprofiler.cli import main
from tests.kernel.harness import (
    NETPROFILER,
    Agent,
    Calls,
    Record,
    Run,
    check_form,
    check_ledger,
    check_run,
    end_process,
    give,
    missing_body,
    sides,
    wait_until,
)
from tests.kernel.test_command_line import UNPRIVILEGED, one_message

pytestmark = pytest.mark.kernel


@dataclass
class Taken:
    """One piece of traffic, seen three ways at the same time."""

    recording: Path
    capture: Path
    live: list[Record]
    runs: list[Run]
    files: Run
    """Its bodies went by sendfile: the agent knows less of them than the wire."""

    @property
    def port_of(self) -> set[int]:
        return {run.client[0].peer_port for run in (*self.runs, self.files)}


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    return str(stderr)


@pytest.fixture(scope="module")
def taken(calls: Calls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taken]:
    directory = tmp_path_factory.mktemp("taken")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    capture = directory / "lo.pcap"
    address = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        tcpdump = subprocess.Popen(
            [
                "tcpdump",
                "-i",
                "lo",
                "-U",
                "--immediate-mode",
                "-B",
                "65536",
                "-s",
                "0",
                "-w",
                str(capture),
                f"tcp port {port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(end_process, tcpdump)
        give(directory)
        live = Agent(directory / "live", "--port", str(port))
        stack.callback(live.kill)
        recorder = Agent(directory / "record", str(directory / "recording"), verb=["record"], own_output=False)
        stack.callback(recorder.kill)
        live.wait_ready()
        recorder.wait_ready()
        assert wait_until(capture.exists, 5)

        pair = ["--iovec-bytes", "4000"]
        runs = [
            calls.run([*pair, *client], [*pair, *server], address)
            for client, server in (
                (["--target", "/get?bytes=100", "--requests", "23"], []),
                (["--target", "/post?bytes=10240", "--method", "POST", "--body-bytes", "10240", "--requests", "3"], []),
                (["--target", "/missing?status=404"], ["--send", "sendmsg"]),
                (
                    ["--target", "/bytes?bytes=50", "--send-bytes", "1"],
                    ["--receive", "recvfrom", "--receive-bytes", "1"],
                ),
                (["--target", "/until-close?bytes=3000"], ["--close-framing"]),
            )
        ]
        files = calls.run(
            ["--target", "/file?bytes=10240", "--requests", "3"],
            ["--send", "sendfile", "--file", str(directory / "file")],
            address,
        )
        every = [*runs, files]
        pids = set().union(*(run.pids for run in every))
        assert len(live.wait_for(pids, sum(4 * len(run.client) for run in every))) > 0
        assert live.end() == 0, live.stderr()
        assert recorder.end() == 0, recorder.stderr()
        time.sleep(0.2)  # tcpdump writes at once, but reads in its turn
        assert re.search(r"^0 packets dropped by kernel", ended(tcpdump), re.MULTILINE)
        check_ledger(live.ledger())
        yield Taken(directory / "recording", capture, list(live.records()), runs, files)


def replayed(directory: Path, source: Path, *options: str) -> list[str]:
    """The lines of a replay by a user without rights."""
    output = directory / f"replayed-{time.monotonic_ns()}.log"
    done = subprocess.run(
        [*UNPRIVILEGED, str(NETPROFILER), "replay", str(source), "--output", str(output), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return output.read_text().splitlines()


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o777)
    return tmp_path


def test_live_log_is_right(taken: Taken) -> None:
    for run in taken.runs:
        check_run([r for r in taken.live if r["pid"] in run.pids], run)
    check_run(
        [r for r in taken.live if r["pid"] in taken.files.pids], taken.files, server_sends=missing_body("sendfile")
    )


def test_recording_is_private(taken: Taken) -> None:
    assert stat.S_IMODE(taken.recording.stat().st_mode) == 0o600


def test_recording_replays_to_the_same_bytes(taken: Taken, open_path: Path) -> None:
    first = replayed(open_path, taken.recording)
    assert first == replayed(open_path, taken.recording)
    records = [json.loads(line) for line in first]
    for record in records:
        check_form(record)
    for run in taken.runs:
        check_run([r for r in records if r["pid"] in run.pids], run)


def test_recording_says_what_the_live_log_said(taken: Taken, open_path: Path) -> None:
    """Two agents: each has its own clock offset, so times may differ by less than a millisecond."""
    records = [json.loads(line) for line in replayed(open_path, taken.recording)]
    assert facts(taken, records) == facts(taken, taken.live)


OWN = {"timestamp", "ttfb_ms", "duration_ms", "exchange", "cmdline"}


def facts(taken: Taken, records: list[Record]) -> list[str]:
    """What does not depend on which agent looked."""
    pids = set().union(*(run.pids for run in taken.runs))
    return sorted(
        json.dumps({key: value for key, value in record.items() if key not in OWN})
        for record in records
        if record["pid"] in pids
    )


def test_replay_filters(taken: Taken, open_path: Path) -> None:
    """The same filters hold for replay."""
    run = taken.runs[1]
    lines = replayed(open_path, taken.recording, "--pid", str(run.client_pid))
    records = [json.loads(line) for line in lines]
    assert {record["pid"] for record in records} == {run.client_pid}
    assert len(records) == 6


def test_replay_ledger(taken: Taken, open_path: Path) -> None:
    ledger = open_path / "ledger.json"
    lines = replayed(open_path, taken.recording, "--ledger", str(ledger))
    book = json.loads(ledger.read_text())
    check_ledger(book, sum(run.stream_bytes for run in taken.runs))
    assert book["records"]["rows"]["written"] == len(lines)


def test_decode_shows_each_record(taken: Taken) -> None:
    done = subprocess.run(
        [*UNPRIVILEGED, str(NETPROFILER), "decode", str(taken.recording)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for run in taken.runs:
        for truths in (run.client, run.server):
            # a call that moved bytes is a raw record, or is named in one
            own = [line for line in lines if str(truths[0].pid) in line.replace("=", " ").replace(",", " ").split()]
            assert own, (truths[0].target, lines[:3])
    assert any("/get?bytes=100" in line for line in lines)
    assert sum("sendfile" in line for line in lines) >= 3


# ---- the packet capture ----


def exchanges_of(records: list[Record]) -> list[tuple[object, ...]]:
    """Each exchange by its hops: what both sources can know."""
    responses = {r["exchange"]: r for r in records if "status_code" in r}
    found = set()
    for request in records:
        if "method" not in request:
            continue
        response = responses[request["exchange"]]
        found.add(
            (
                request["hop"],
                request["method"],
                request["url"],
                request.get("body"),
                request["body_bytes"],
                request["source_port"],
                request["dest_port"],
                json.dumps(request["headers"]),
                response["hop"],
                response["status_code"],
                response.get("body"),
                response["body_bytes"],
                json.dumps(response["headers"]),
            )
        )
    return sorted(found, key=repr)


def test_capture_gives_the_same_exchanges(taken: Taken, open_path: Path) -> None:
    records = [json.loads(line) for line in replayed(open_path, taken.capture)]
    clients = set().union(*({run.client_pid} for run in (*taken.runs, taken.files)))
    live = exchanges_of([record for record in taken.live if record["pid"] in clients])
    assert len(live) == 23 + 3 + 1 + 1 + 1 + 3
    assert exchanges_of(records) == live
    for record in records:
        assert record["completeness"] in {"complete", "truncated"}, record
        assert "pid" not in record, "a capture knows no processes"


def test_capture_in_the_next_generation_format(taken: Taken, open_path: Path) -> None:
    """The same packets as pcapng, written here by hand."""
    data = taken.capture.read_bytes()
    magic, link = struct.unpack_from("<I16xI", data)
    assert magic == 0xA1B2C3D4
    blocks = [struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)]
    blocks.append(struct.pack("<IIHHII", 1, 20, link, 0, 0, 20))
    at = 24
    while at < len(data):
        seconds, micros, captured, length = struct.unpack_from("<IIII", data, at)
        packet = data[at + 16 : at + 16 + captured]
        time_us = seconds * 1_000_000 + micros
        padded = packet + bytes(-captured % 4)
        size = 32 + len(padded)
        fields = struct.pack("<IIIIIII", 6, size, 0, time_us >> 32, time_us & 0xFFFFFFFF, captured, length)
        blocks.append(fields + padded + struct.pack("<I", size))
        at += 16 + captured
    converted = open_path / "lo.pcapng"
    converted.write_bytes(b"".join(blocks))
    plain = [json.loads(line) for line in replayed(open_path, taken.capture)]
    generation = [json.loads(line) for line in replayed(open_path, converted)]
    assert exchanges_of(generation) == exchanges_of(plain)
    assert len(generation) == len(plain)


# ---- files that are none, or only half ----


@pytest.mark.parametrize("verb", ["replay", "decode"])
@pytest.mark.parametrize(
    "content",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x7fELF" + bytes(1000), bytes(64), b"{}\n"],
    ids=["empty", "http", "elf", "zeros", "json"],
)
def test_foreign_file(tmp_path: Path, verb: str, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    status, stdout, stderr = run_plain(verb, str(path))
    assert status in {1, 2}
    assert "foreign" in one_message(stderr)
    assert not stdout


@pytest.mark.parametrize("verb", ["replay", "decode"])
def test_file_that_is_not_there(tmp_path: Path, verb: str) -> None:
    status, _, stderr = run_plain(verb, str(tmp_path / "absent"))
    assert status in {1, 2}
    assert "absent" in one_message(stderr)


@pytest.mark.parametrize("verb", ["replay", "decode"])
def test_truncated_recording(taken: Taken, tmp_path: Path, verb: str) -> None:
    """What is whole is shown; that the rest is missing is said, and is in the exit status."""
    data = taken.recording.read_bytes()
    path = tmp_path / "truncated"
    path.write_bytes(data[: len(data) * 2 // 3])
    full_status, full, _ = run_plain(verb, str(taken.recording))
    status, stdout, stderr = run_plain(verb, str(path))
    assert full_status == 0
    assert status in {1, 2}
    assert "Traceback" not in stderr
    assert "truncated" in stderr.lower().replace(str(path), "")
    assert 0 < len(stdout.splitlines()) < len(full.splitlines())
    for line in stdout.splitlines() if verb == "replay" else []:
        check_form(json.loads(line))


@pytest.mark.parametrize("verb", ["replay", "decode"])
def test_every_truncation_has_a_message(taken: Taken, tmp_path: Path, verb: str) -> None:
    data = taken.recording.read_bytes()
    path = tmp_path / "cut"
    for size in (1, 7, 15, 33, 100, len(data) - 1):
        path.write_bytes(data[:size])
        status, _, stderr = run_plain(verb, str(path))
        assert status in {0, 1, 2}, (size, stderr)
        assert "Traceback" not in stderr, (size, stderr)
        assert stderr.strip(), size


@pytest.mark.parametrize("verb", ["replay", "decode"])
def test_recording_of_another_version(
    taken: Taken, tmp_path: Path, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    """The ABI version is in the file's head: some byte there, changed, makes the file unreadable, and says so. In this process,
    where an exception would come out as it is: 32 new ones take a quarter of a second each.
    """
    data = bytearray(taken.recording.read_bytes())
    path = tmp_path / "version"
    messages = []
    for at in range(32):
        changed = bytearray(data)
        changed[at] ^= 0x55
        path.write_bytes(changed)
        status = main([verb, str(path)])
        stderr = capfd.readouterr().err
        assert status in {0, 1, 2}, (at, stderr)
        assert "Traceback" not in stderr, (at, stderr)
        if status:
            messages.append(stderr)
    assert any("version" in message.replace(str(path), "").lower() for message in messages), messages


def run_plain(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [str(NETPROFILER), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_record_command(tmp_path: Path, calls: Calls) -> None:
    """`record FILE -- COMMAND` where it is offered; the recording holds its exchange."""
    recorder = Agent(tmp_path, str(tmp_path / "recording"), verb=["record"], own_output=False)
    try:
        recorder.wait_ready()
        run = calls.run(["--target", "/recorded"])
        assert recorder.end() == 0, recorder.stderr()
    finally:
        recorder.kill()
    status, stdout, stderr = run_plain("replay", str(tmp_path / "recording"))
    assert status == 0, stderr
    records = [record for record in map(json.loads, stdout.splitlines()) if record["pid"] in run.pids]
    check_run(records, run)
    assert len(sides(records, run.client_pid)[0]) == 1
