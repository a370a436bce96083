"""The demo: netprofiler watches a Go client talk to a Go server, in plaintext and over TLS, neither of them changed.

It builds server/ and traffic/, runs them with the agent beside them, and shows an exchange of each kind as the log has
it, the ledger, and where the log lies. Then it checks the log against what the two programs themselves say that they did:

1. every exchange is there four times, request and response as client and server saw them, joined by `exchange`
   (request and response of one process) and `hop` (the two ends' records of one message);
2. each record has the keys that apply to it, in their order, and no others; `tls` is there on the port for TLS alone;
3. methods, targets, statuses and body sizes are those of the client's summary and of the server's access log, and over
   TLS the version, cipher, server name and protocol are those that the server negotiated;
4. the ledger's rows sum to its totals, and nothing was lost.

`make demo` runs it. Exit status 0 when all of that holds; 1, with what is missing, when not.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
DIRECTORY = BUILD / "demo"
AGENT = ROOT / ".venv" / "bin" / "netprofiler"

REQUESTS = 20  # each way; two and a half times round the rotation of traffic/
DELAY_MS = 10
READY_SECONDS = 10
END_SECONDS = 10
TRAFFIC_SECONDS = 60
PROBLEMS_SHOWN = 12

Record = dict[str, Any]
"""One line of the log."""

KEY_ORDER = (
    "timestamp", "pid", "tid", "comm", "cmdline", "direction", "role",
    "source_ip", "source_port", "dest_ip", "dest_port", "bytes", "protocol",
    "method", "url", "status_code", "reason", "body", "body_bytes", "headers", "raw_payload",
    "tls", "connection", "exchange", "hop", "ttfb_ms", "duration_ms", "completeness",
    "source_container", "destination_container", "destination_type",
)  # fmt: skip
"""The keys that the demo's exchanges can have, in the log's order: TCP, text bodies, nothing missing."""

TLS_KEYS = ("library", "version", "cipher", "sni", "alpn")
"""The keys of `tls`. But for the first they are those of the access log's `tls`, too."""

REQUEST_KEYS = {"method", "url"}
RESPONSE_KEYS = {"status_code", "reason", "ttfb_ms", "duration_ms"}
PLACE_KEYS = {"source_container", "destination_container", "destination_type"}
"""May be there: they depend on where the demo runs."""

END_KEYS = {
    "timestamp", "pid", "tid", "comm", "cmdline", "direction", "role", "connection", "exchange",
    "ttfb_ms", "duration_ms",
}  # fmt: skip
"""What tells the two records of one message apart; in all else they are equal."""


class DemoError(Exception):
    """The demo cannot go on. The message is for the user."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the agent wrote, and what the two programs say themselves."""

    ports: dict[str, int]
    """The server's, by scheme: `http`, `https`."""
    pids: dict[str, int]
    """By role: `client`, `server`."""
    records: list[Record]
    ledger: dict[str, Any]
    summary: dict[str, Any]
    """Printed by traffic."""
    access_log: list[dict[str, Any]]
    """Written by the server."""


# ---- Running -------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--built", action="store_true", help="server and traffic are in build/ already")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if not parser.parse_args().built:
            build()
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        become_root()
        try:
            evidence = run()
        finally:
            give_back()
    except DemoError as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    problems = list(check(evidence))
    show(evidence)
    if problems:
        print(f"demo: failed: {len(problems)} things are not as they should be", file=sys.stderr)
        for problem in problems[:PROBLEMS_SHOWN]:
            print(f"  {problem}", file=sys.stderr)
        if len(problems) > PROBLEMS_SHOWN:
            print("  …", file=sys.stderr)
        return 1
    over_tls = sum(scheme_of(line) == "https" for line in evidence.access_log)
    print(f"demo: ok, {len(evidence.access_log)} exchanges, {over_tls} of them over TLS, 4 records each")
    return 0


def build() -> None:
    """Bring build/server and build/traffic up to date; Go's own cache makes the second time quick."""
    go = os.environ.get("GO") or str(Path(output_of([str(ROOT / "scripts" / "go.sh")]).strip()) / "go")
    for name in ("server", "traffic"):
        target = BUILD / name
        if not target.exists():
            print(f"building {name} …", flush=True)
        # No VCS stamp: git refuses to look at a checkout that belongs to somebody else, and root builds here too.
        command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(target), "."]
        output_of(command, cwd=ROOT / name, env={**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"})


def output_of(command: Sequence[str], cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise DemoError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise DemoError(f"`{' '.join(command)}` ended with status {done.returncode}")
    return done.stdout


def become_root() -> None:
    """Start again as root where we are not; the agent loads BPF programs."""
    if os.geteuid() == 0:
        return
    if shutil.which("sudo") is None:
        raise DemoError("the agent needs root, and there is no sudo here: run it as root")
    sys.stdout.flush()
    os.execvp("sudo", ["sudo", "-E", sys.executable, __file__, "--built"])


def give_back() -> None:
    """Under sudo, leave the log to the user who asked for it."""
    uid, gid = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if uid and gid:
        for path in DIRECTORY.iterdir():
            os.chown(path, int(uid), int(gid))


def run() -> Evidence:
    """Server, client, agent; then all ended in the order in which nothing is cut off."""
    if not AGENT.exists():
        raise DemoError(f"there is no {AGENT.relative_to(ROOT)}: run `make install`")
    for path in DIRECTORY.iterdir():  # the agent appends
        path.unlink()
    with ExitStack() as stack:
        # The agent comes last: when it is ready, the processes that run already are probed. One that starts later is
        # probed as soon as its binary is known, and by then it may have sent something. Port 0 leaves no race for a port.
        server = start(
            stack, "server", "build/server", "-host", "127.0.0.1", "-port", "0", "-tls-port", "0", "-socket", "",
            "-access-log", str(DIRECTORY / "access.log"),
        )  # fmt: skip
        ports = {
            scheme: int(wait_for_line(server, "server", f"listening {kind} ").rpartition(":")[2])
            for scheme, kind in (("http", "tcp"), ("https", "tls"))
        }
        traffic = start(
            stack, "traffic", "build/traffic", "--host", "127.0.0.1", "--port", str(ports["http"]),
            "--tls-port", str(ports["https"]), "--ca", "", "--hold", "--json",
            "--requests", str(REQUESTS), "--delay-ms", str(DELAY_MS), held=True,
        )  # fmt: skip
        agent = start(
            stack, "agent", str(AGENT), "--output", str(DIRECTORY / "http.log"),
            "--ledger", str(DIRECTORY / "ledger.json"), *(f"--port={port}" for port in ports.values()),
        )  # fmt: skip
        wait_for_line(agent, "agent", "ready")
        let_go(traffic)
        finish(traffic, "traffic", None, TRAFFIC_SECONDS)
        finish(server, "server", signal.SIGTERM)
        finish(agent, "agent", signal.SIGINT)
    return Evidence(
        ports=ports,
        pids={"client": traffic.pid, "server": server.pid},
        records=read_lines("http.log"),
        ledger=read_lines("ledger.json", whole=True)[0],
        summary=read_lines("traffic.out", whole=True)[0],
        access_log=read_lines("access.log"),
    )


def start(stack: ExitStack, name: str, *command: str, held: bool = False) -> subprocess.Popen[bytes]:
    """Start a program that the stack ends, whatever happens. Its output is in build/demo/NAME.out and NAME.err.

    One that is held has a standard input that does not end before `let_go`.
    """
    # A configuration of the user's own must not change what the demo shows.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NETPROFILER_", "ADI_"))}
    stdin = subprocess.PIPE if held else subprocess.DEVNULL
    with (DIRECTORY / f"{name}.out").open("wb") as out, (DIRECTORY / f"{name}.err").open("wb") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=stdin, stdout=out, stderr=err)
    stack.callback(end, process)
    return process


def let_go(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def end(process: subprocess.Popen[bytes]) -> None:
    let_go(process)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_line(process: subprocess.Popen[bytes], name: str, prefix: str) -> str:
    """Wait for a line on standard error that says that the program is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        running = process.poll() is None
        for line in stderr_of(name).splitlines(keepends=True):
            if line.startswith(prefix) and line.endswith("\n"):
                return line.strip()
        if not running:
            raise DemoError(f"the {name} ended with status {process.returncode}:\n{stderr_of(name)}")
        if time.monotonic() > deadline:
            raise DemoError(f"the {name} was not ready after {READY_SECONDS} s:\n{stderr_of(name)}")
        time.sleep(0.01)


def finish(process: subprocess.Popen[bytes], name: str, signal_: int | None, seconds: float = END_SECONDS) -> None:
    """Ask a program to end, or wait until it does by itself; it must do so in time, with status 0."""
    if signal_ is not None:
        process.send_signal(signal_)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise DemoError(f"{name} was still there after {seconds} s:\n{stderr_of(name)}") from None
    if status:
        said = (DIRECTORY / f"{name}.out").read_text(errors="replace")
        raise DemoError(f"{name} ended with status {status}:\n{said}{stderr_of(name)}")


def stderr_of(name: str) -> str:
    return (DIRECTORY / f"{name}.err").read_text(errors="replace")


def read_lines(name: str, *, whole: bool = False) -> list[dict[str, Any]]:
    """The JSON objects of a file: one a line, or the whole file is one."""
    try:
        text = (DIRECTORY / name).read_text()
        return [json.loads(part) for part in ([text] if whole else text.splitlines())]
    except (OSError, ValueError) as error:
        raise DemoError(f"{DIRECTORY / name}: {error}") from error


# ---- Checking ------------------------------------------------------------------------------------------------------


def check(evidence: Evidence) -> Iterator[str]:
    """All that is not as it should be, one line each."""
    for number, record in enumerate(evidence.records, 1):
        for problem in check_record(record, evidence):
            yield f"http.log:{number}: {problem}"
    yield from check_joins(evidence.records)
    yield from check_truth(evidence)
    yield from check_ledger(evidence)


def check_record(record: Record, evidence: Evidence) -> Iterator[str]:
    """One record by itself: its keys, and the values that can be known."""
    request = is_request(record)
    port = record.get("dest_port" if request else "source_port")
    want = set(KEY_ORDER) - PLACE_KEYS - (RESPONSE_KEYS if request else REQUEST_KEYS)
    if not record.get("body_bytes"):
        want.discard("body")
    if port != evidence.ports["https"]:
        want.discard("tls")
    if missing := want - record.keys():
        yield f"without {', '.join(sorted(missing))}"
        return
    if extra := record.keys() - want - PLACE_KEYS:
        yield f"with {', '.join(sorted(extra))}, which cannot apply"
    elif list(record) != [key for key in KEY_ORDER if key in record]:
        yield f"keys out of order: {', '.join(record)}"
    if unknown := [key for key, value in record.items() if value is None or value == ""]:
        yield f"says nothing in {', '.join(unknown)}: such a key is left out"

    role, sends = record["role"], record["direction"] == "send"
    if sends != (request == (role == "client")):
        yield f"a {role} that does {record['direction']} a {kind(record)}"
    if record["pid"] != evidence.pids.get(role):
        yield f"{role} is pid {record['pid']}, not {evidence.pids.get(role)}"
    if port not in evidence.ports.values():
        yield f"the server's port {port} is none of {', '.join(map(str, evidence.ports.values()))}"
    if "tls" in record:
        yield from check_tls(record["tls"])
    if record["completeness"] != "complete":
        yield f"is {record['completeness']}, not complete"
    if record["bytes"] != len(record["raw_payload"].encode()):
        yield f"bytes {record['bytes']}, but the payload has {len(record['raw_payload'].encode())}"
    if record["body_bytes"] != len(record.get("body", "").encode()):
        yield f"body_bytes {record['body_bytes']}, but the body has {len(record.get('body', '').encode())}"
    if not request and not 0 <= record["ttfb_ms"] <= record["duration_ms"]:
        yield f"ttfb_ms {record['ttfb_ms']}, duration_ms {record['duration_ms']}"


def check_tls(tls: dict[str, Any]) -> Iterator[str]:
    """Its form; check_truth compares the values."""
    if tls.get("library") != "go":
        yield f"tls.library is {tls.get('library')}, not go"
    if list(tls) != [key for key in TLS_KEYS if key in tls]:
        yield f"keys of tls out of order, or others than {', '.join(TLS_KEYS)}: {', '.join(tls)}"
    if unknown := [key for key, value in tls.items() if not value]:
        yield f"says nothing in tls.{', tls.'.join(unknown)}: such a key is left out"


def check_joins(records: list[Record]) -> Iterator[str]:
    """Two records an exchange, two records a hop, and both ways round the same four."""
    exchanges, hops = grouped(records, "exchange"), grouped(records, "hop")
    for name, group in exchanges.items():
        if sorted(map(kind, group)) != ["request", "response"]:
            yield f"exchange {name} has {counts(map(kind, group))}, not one request and one response"
        elif any(group[0].get(key) != group[1].get(key) for key in ("pid", "role", "connection", "tls")):
            yield f"exchange {name} joins two processes, roles, connections, or what is said of their TLS"
    for name, group in hops.items():
        ends = [f"{record.get('role')}'s {kind(record)}" for record in group]
        if len(group) != 2 or sorted(record.get("role", "") for record in group) != ["client", "server"]:
            yield f"hop {name} joins {counts(ends)}, not one record of each end"
            continue
        first, second = group
        differing = [key for key in KEY_ORDER if key not in END_KEYS and first.get(key) != second.get(key)]
        if differing:
            yield f"hop {name}: the two ends differ in {', '.join(differing)}"
    for name, group in exchanges.items():
        if group[0].get("role") == "client" and len(four(group, hops)) != 4:
            yield f"exchange {name} of the client: its two hops do not lead to one exchange of the server"


def check_truth(evidence: Evidence) -> Iterator[str]:
    """The log against the client's summary and the server's access log."""
    rows, expected = evidence.summary["rows"], evidence.summary["requests"]
    for scheme in evidence.ports:
        sent = sum(row["count"] for row in rows if row["scheme"] == scheme)
        answered = sum(scheme_of(line) == scheme for line in evidence.access_log)
        if sent != REQUESTS or answered != REQUESTS:
            yield f"{scheme}: {REQUESTS} requests asked for, {sent} sent, {answered} answered by the server"
    if len(evidence.records) != 4 * expected:
        yield f"{len(evidence.records)} records of {expected} exchanges, not {4 * expected}"
    asked = Counter({(row["scheme"], row["method"], row["path"], row["status"]): row["count"] for row in rows})
    served = Counter(
        (
            scheme_of(line), line["method"], line["target"], line["status"],
            line["request_body_bytes"], line["response_body_bytes"], agreed(line),
        )
        for line in evidence.access_log
    )  # fmt: skip
    for role in ("client", "server"):
        logged = Counter(facts(evidence.records, role))
        by_path: Counter[tuple[Any, ...]] = Counter()
        for (scheme, method, target, status, *_), count in logged.items():
            by_path[scheme, method, str(target).partition("?")[0], status] += count
        yield from differences(f"as {role}, against the client's summary", by_path, asked)
        yield from differences(f"as {role}, against the server's access log", logged, served)


def check_ledger(evidence: Evidence) -> Iterator[str]:
    """Rows sum to totals, nothing was lost, and the log is what the ledger says was written."""
    try:
        tables = [(name, *table) for name, table in ledger_tables(evidence.ledger).items()]
        written = evidence.ledger["records"]["rows"]["written"]
        recorded = evidence.ledger["bytes"]["rows"]["recorded"]
    except (KeyError, TypeError, AttributeError) as error:
        yield f"ledger.json: {error!r}"
        return
    for name, total, rows in tables:
        if sum(rows.values()) != total:
            yield f"ledger: the rows of {name} sum to {sum(rows.values())}, the total is {total}"
        for row in ("lost", "gap", "output_failed"):
            if rows.get(row, 0):
                yield f"ledger: {rows[row]} {name} in {row}"
    if written != len(evidence.records):
        yield f"ledger: {written} records written, the log has {len(evidence.records)}"
    if recorded != (in_log := sum(record.get("bytes", 0) for record in evidence.records)):
        yield f"ledger: {recorded} bytes recorded, the messages in the log have {in_log}"


def scheme_of(line: dict[str, Any]) -> str:
    """Of a record, or of a line of the access log."""
    return "https" if "tls" in line else "http"


def agreed(line: dict[str, Any]) -> str:
    """What the two ends negotiated, of a record or of a line of the access log; empty in plaintext."""
    tls = line.get("tls", {})
    return ", ".join(f"{key} {tls[key]}" for key in TLS_KEYS if key in tls and key != "library")


def is_request(record: Record) -> bool:
    return "method" in record


def kind(record: Record) -> str:
    return "request" if is_request(record) else "response"


def grouped(records: list[Record], key: str) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if key in record:  # that it must be there is check_record's to say
            groups[record[key]].append(record)
    return groups


def four(exchange: list[Record], hops: dict[str, list[Record]]) -> list[Record]:
    """The records of one exchange at both ends, in the order of the way: request out, in, response out, in.

    Fewer than four where the hops of request and response do not lead to one exchange of the other side.
    """
    mine = sorted(exchange, key=kind)  # request, response
    other = [
        record
        for message in mine
        for record in hops.get(message.get("hop", ""), [])
        if record.get("role") != message.get("role") and kind(record) == kind(message)
    ]
    if len(mine) != 2 or len(other) != 2 or other[0].get("exchange") != other[1].get("exchange"):
        return mine
    return [mine[0], other[0], other[1], mine[1]]


def facts(records: list[Record], role: str) -> Iterator[tuple[Any, ...]]:
    """Scheme, method, target, status, the sizes of both bodies, and TLS, of each exchange that one side saw whole."""
    for group in grouped([record for record in records if record.get("role") == role], "exchange").values():
        if sorted(map(kind, group)) == ["request", "response"]:
            request, response = sorted(group, key=kind)
            yield (
                scheme_of(request), request["method"], request.get("url"), response.get("status_code"),
                request.get("body_bytes"), response.get("body_bytes"), agreed(request),
            )  # fmt: skip


def differences(where: str, got: Counter[tuple[Any, ...]], want: Counter[tuple[Any, ...]]) -> Iterator[str]:
    for word, surplus in (("missing", want - got), ("too many", got - want)):
        for item, count in sorted(surplus.items(), key=str):
            yield f"{where}: {count} {word} of {' '.join(map(str, item))}"


def counts(items: Iterator[str] | list[str]) -> str:
    return ", ".join(f"{count} x {item}" for item, count in sorted(Counter(items).items()))


def ledger_tables(ledger: dict[str, Any]) -> dict[str, tuple[int, dict[str, int]]]:
    """Total and rows of each table of the ledger."""
    return {
        name: (ledger[name][total], ledger[name]["rows"])
        for name, total in (("bytes", "total"), ("calls", "total"), ("records", "made"))
    }


# ---- Showing -------------------------------------------------------------------------------------------------------


def show(evidence: Evidence) -> None:
    log = (DIRECTORY / "http.log").relative_to(ROOT)
    requests = evidence.summary["requests"]
    over_tls = sum(row["count"] for row in evidence.summary["rows"] if row["scheme"] == "https")
    print(
        f"A Go client sent {requests} requests to a Go server, {over_tls} of them over TLS; neither of the two was changed."
    )
    print(f"netprofiler wrote {len(evidence.records)} records. These four are one exchange in plaintext, shortened:")
    for record in specimen(evidence.records, "http"):
        show_record(record)
    print("\nAnd these four are one over TLS:")
    for record in specimen(evidence.records, "https"):
        show_record(record)
    print("\nThe ledger: every byte that the kernel saw on those ports, and what became of it")
    show_ledger(evidence.ledger)
    print(f"\nThe log: {log}    all keys of a record: head -1 {log} | python3 -m json.tool\n")


def specimen(records: list[Record], scheme: str) -> list[Record]:
    """The four records of a POST /echo, or what there is of it."""
    records = [record for record in records if scheme_of(record) == scheme]
    exchanges, hops = grouped(records, "exchange"), grouped(records, "hop")
    found = [
        four(group, hops)
        for group in exchanges.values()
        if any(r.get("url") == "/echo" and r.get("role") == "client" for r in group)
    ]
    return max(found, key=len, default=records[:4])


SHOWN = (
    ("timestamp", "pid", "comm", "direction", "role"),
    ("method", "url", "status_code", "reason", "body", "duration_ms"),
    ("tls",),
    ("exchange", "hop"),
)
"""The keys that a specimen shows, by line."""


def show_record(record: Record) -> None:
    verb = "sends" if record.get("direction") == "send" else "receives"
    print(f"\n{record.get('comm', '?')} {verb} the {kind(record)}")
    shown = [{key: record[key] for key in line if key in record} for line in SHOWN]
    lines = [json.dumps(part, ensure_ascii=False)[1:-1] for part in shown if part]
    rest = len(record) - sum(map(len, shown))
    print("  {" + ",\n   ".join(lines) + f", … {rest} more}}")


def show_ledger(ledger: dict[str, Any]) -> None:
    try:
        tables = ledger_tables(ledger)
    except (KeyError, TypeError):
        print(f"  {ledger}")
        return
    (bytes_total, bytes_rows), (calls_total, calls_rows), (made, record_rows) = tables.values()
    print(f"  {'':<14}{'bytes':>10}{'calls':>10}")
    for row in [*bytes_rows, *(row for row in calls_rows if row not in bytes_rows)]:
        row_bytes, row_calls = bytes_rows.get(row, 0), calls_rows.get(row, 0)
        if row_bytes or row_calls or row in {"lost", "gap"}:
            print(f"  {row:<14}{row_bytes:>10,}{row_calls:>10,}")
    print(f"  {'total':<14}{bytes_total:>10,}{calls_total:>10,}")
    others = "".join(f", {count} {row}" for row, count in record_rows.items() if count or row == "written")
    print(f"  records: {made} made{others}")


if __name__ == "__main__":
    sys.exit(main())
