"""Containers of a real engine: whose traffic it is, by the services' own word; what an engine can do wrong; who asks to be seen.

Two engines of the tests' own (harness/docker.py), each with a network namespace of its own, so that both can have the same
names and addresses.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from netprofiler.commands.map import Calls
from tests.real.harness.agent import NETPROFILER, Agent
from tests.real.harness.checks import Record
from tests.real.harness.docker import AGENT_BASE_IMAGE, BASE_IMAGE, CACHE, Engine, service_lines
from tests.real.harness.programs import REPOSITORY, require, wait_until

VIEWS = 23
SHOP = "shop"
LOSS = ("gap", "partial")
"""What is under way when a container is stopped, and connections of engines that were there before the agent."""
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("a", CACHE) as started:
        started.make_images()
        started.docker("volume", "prune", "--force")  # of a run that was broken off
        yield started


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The context of an image FROM scratch."""
    context = tmp_path_factory.mktemp("tiny")
    [go] = require("go")
    subprocess.run(
        [go, "build", "-o", context / "tiny", "."],
        cwd=HERE / "programs" / "tiny",
        env={**os.environ, "CGO_ENABLED": "0"},
        check=True,
        timeout=170,
    )
    (context / "Dockerfile").write_text('FROM scratch\nCOPY tiny /tiny\nENTRYPOINT ["/tiny"]\n')
    return context


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stacks are built from, with the binaries that their compilers would make."""
    target = tmp_path_factory.mktemp("checkout")
    for name in ("stacks", "bpf", "netprofiler", "scripts", "server", "traffic", "deploy", "dashboards"):
        shutil.copytree(REPOSITORY / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "Dockerfile", ".dockerignore", "docker-compose.yml"):
        shutil.copy(REPOSITORY / name, target / name)
    [go] = require("go")
    [javac] = require("javac")
    for directory in (target / "server", target / "traffic", target / "stacks/bookinfo/details"):
        subprocess.run(
            [go, "build", "-o", directory.name, "."],
            cwd=directory,
            env={**os.environ, "CGO_ENABLED": "0"},
            check=True,
            timeout=170,
        )
    reviews = target / "stacks/bookinfo/reviews"
    subprocess.run([javac, "-d", "classes", "Reviews.java"], cwd=reviews, check=True, timeout=170)
    return target


SETTINGS = {
    "AGENT_BASE": AGENT_BASE_IMAGE,
    "PROMETHEUS_IMAGE": "netprofiler-tests-prometheus",
    **dict.fromkeys(("NGINX_BASE", "PYTHON_BASE", "NODE_BASE", "JAVA_BASE", "JDK_IMAGE", "GO_IMAGE"), BASE_IMAGE),
}


def containers_of(engine: Engine, project: str) -> dict[str, str]:
    """Of a compose project: service → container id."""
    text = engine.docker(
        *("ps", "--all", "--no-trunc", "--filter", f"label=com.docker.compose.project={project}"),
        *("--format", '{{.Label "com.docker.compose.service"}} {{.ID}}'),
    )  # fmt: skip
    return dict(line.split() for line in text.splitlines())


@dataclass
class Stack:
    """A compose project that has run."""

    identities: dict[str, str]
    logs: dict[str, str]
    """What each service has written to its standard output."""
    records: list[Record]
    """Of the agent that ran in it."""


SERVICES = {"client": "traffic", "server": "server"}


def run_stack(
    engine: Engine, directory: Path, project: str, *services: str, then: Callable[[], None] = lambda: None
) -> Stack:
    """Builds it, starts it (`services`: these alone), waits for its traffic to end, asks `then`, and takes it away."""
    settings = {**SETTINGS, "DOCKER_SOCKET": str(engine.socket), "COMPOSE_PROJECT_NAME": project}
    engine.compose(directory, project, "up", "--build", "--detach", *services, settings=settings)
    identities = containers_of(engine, project)
    status = engine.docker("wait", identities["traffic"]).strip()
    then()
    agent = identities["netprofiler"]
    engine.docker("stop", "--time", "15", agent)
    logs = {service: engine.docker("logs", identity) for service, identity in identities.items()}
    said = engine.docker("logs", agent, merged=True)
    assert status == "0", f"the traffic failed: {logs}\n{said}"
    assert "ready" in said, said
    assert "Traceback" not in said, said
    engine.docker("cp", f"{agent}:/var/log/netprofiler/http.log", str(directory / "http.log"))
    engine.docker("rm", "--force", *identities.values())
    engine.docker("volume", "prune", "--force")
    # Bytes, because a text is split at more than the end of a line.
    records = [json.loads(line) for line in (directory / "http.log").read_bytes().splitlines()]
    return Stack(identities, logs, records)


def edges(records: list[Record]) -> dict[tuple[str, str], int]:
    """What `netprofiler map` makes of them."""
    calls = Calls()
    calls.read(0, (json.dumps(record).encode() for record in records))
    assert calls.skipped == 0
    return {(edge.caller, edge.callee): edge.calls for edge in calls.edges()}


def between(records: list[Record], project: str, *services: str) -> list[Record]:
    """Those of a project's containers; `services`: at both ends one of these."""
    found = []
    for record in records:
        ends = [record.get("source_container", {}), record.get("destination_container", {})]
        if any(end.get("project") == project for end in ends) and (
            not services or all(end.get("service") in services for end in ends)
        ):
            found.append(record)
    return found


def without_health(records: list[Record]) -> list[Record]:
    health = {record["exchange"] for record in records if record.get("url") == "/health"}
    return [record for record in records if record["exchange"] not in health]


def check_places(records: list[Record], identities: dict[str, str], project: str) -> None:
    """Both ends of every record are containers of the project, with the id that the engine gave them."""
    for record in records:
        assert record["destination_type"] == "container", record
        for end in ("source_container", "destination_container"):
            container = record[end]
            assert container["project"] == project, record
            assert container["container_id"] == identities[container["service"]], record
            assert container["image"] and container["container_name"], record


def test_23_views_of_bookinfo_are_the_calls_that_its_services_logged_seen_from_the_host_and_from_a_container(
    engine: Engine, checkout: Path, directory: Path
) -> None:
    stack = checkout / "stacks" / "bookinfo"
    options = ("--container-socket", str(engine.socket), "--compose-project", SHOP, "--exclude-port", "9464")
    with Agent(directory, *options, allowed_rows=LOSS) as on_host:
        shop = run_stack(engine, stack, SHOP, then=speak_on_the_host)

    logged = Counter(line["service"] for text in shop.logs.values() for line in service_lines(text) if "path" in line)
    assert logged["gateway"] == logged["productpage"] == logged["details"] == VIEWS
    assert logged["reviews-v1"] + logged["reviews-v2"] + logged["reviews-v3"] == VIEWS
    assert logged["ratings"] == logged["reviews-v2"] + logged["reviews-v3"] == 15
    expected = {
        ("traffic", "gateway"): VIEWS,
        ("gateway", "productpage"): VIEWS,
        ("productpage", "details"): VIEWS,
        **{("productpage", f"reviews-v{n}"): logged[f"reviews-v{n}"] for n in (1, 2, 3)},
        **{(f"reviews-v{n}", "ratings"): logged[f"reviews-v{n}"] for n in (2, 3)},
    }
    expected = {(f"{SHOP}/{caller}", f"{SHOP}/{callee}"): count for (caller, callee), count in expected.items()}
    # The agent in its container asks the engine, too.
    of_shop = [record for record in on_host.records if "unix_path" not in record]
    for records in (of_shop, between(shop.records, SHOP)):
        views = without_health(records)
        assert edges(views) == expected
        check_places(views, shop.identities, SHOP)
        of_details = [record for record in views if record["destination_container"]["service"] == "details"]
        assert {record["tls"]["library"] for record in of_details} == {"openssl", "go"}
        # Request and response, of both ends of each call.
        both = 2 * sum(expected.values())
        seen = Counter(
            (
                record["source_container"]["service"],
                record["destination_container"]["service"],
                record["role"],
                record["direction"],
            )
            for record in views
        )
        assert Counter(record["role"] for record in views) == {"client": both, "server": both}, seen
    # What the agent in the container says of those that are in none.
    [request, *_] = of_host = [record for record in shop.records if record.get("url") == "/on-the-host"]
    of_host = [record for record in shop.records if record["exchange"] in {each["exchange"] for each in of_host}]
    assert Counter((record["role"], record["direction"]) for record in of_host) == Counter(
        {("client", "send"): 1, ("server", "recv"): 1, ("server", "send"): 1, ("client", "recv"): 1}
    ), request
    for record in of_host:
        assert record["destination_type"] == "host", record
        assert "source_container" not in record and "destination_container" not in record, record


def speak_on_the_host() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        # Not by a program of some milliseconds: in its container the agent may come too late to see where that was.
        url = f"http://127.0.0.1:{server.server_port}/on-the-host"
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.read() == b"here"
        server.shutdown()
        thread.join()


class Says(BaseHTTPRequestHandler):
    """An HTTP server on the host."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *_: object) -> None:
        """Not on standard error."""


def test_the_demo_in_compose_shows_every_exchange_of_its_traffic_and_prometheus_has_their_number(
    engine: Engine, checkout: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "DOCKER_SOCKET": str(engine.socket), "COMPOSE_PROJECT_NAME": "demo"}
    services = engine.compose(checkout, "demo", "--profile", "observability", "config", "--services", settings=settings)
    assert sorted(services.split()) == ["grafana", "netprofiler", "prometheus", "server", "traffic"]
    [prometheus] = require("prometheus")
    shutil.copy(prometheus, tmp_path / "prometheus")
    (tmp_path / "Dockerfile").write_text(
        f'FROM {BASE_IMAGE}\nCOPY prometheus /bin/prometheus\nWORKDIR /tmp\nENTRYPOINT ["/bin/prometheus"]\n'
    )
    engine.docker("build", "--quiet", "--tag", SETTINGS["PROMETHEUS_IMAGE"], str(tmp_path))
    counts: dict[str, float] = {}

    def ask_prometheus() -> None:
        def has_all() -> bool:
            for role in ("client", "server"):
                query = f'sum(http_{role}_request_duration_seconds_count{{service_name="{SERVICES[role]}"}})'
                answer = json.loads(
                    engine.inside(
                        "curl",
                        "--silent",
                        "--get",
                        "http://127.0.0.1:9090/api/v1/query",
                        "--data-urlencode",
                        f"query={query}",
                    )
                )
                for result in answer["data"]["result"]:
                    counts[role] = float(result["value"][1])
            return counts == {"client": 46, "server": 46}

        with contextlib.suppress(AssertionError):
            wait_until(has_all, "Prometheus has scraped", 20)

    demo = run_stack(engine, checkout, "demo", "netprofiler", "server", "traffic", "prometheus", then=ask_prometheus)
    summary = json.loads(next(line for line in demo.logs["traffic"].splitlines() if line.startswith("{")))
    records = between(demo.records, "demo", "traffic", "server")
    exchanges = {(record["exchange"], record["role"]) for record in records if "status_code" in record}
    # As each end saw them; 23 in plaintext, and 23 over TLS.
    assert summary["requests"] == 46
    assert Counter(role for _, role in exchanges) == {"client": 46, "server": 46}
    assert edges(records) == {("demo/traffic", "demo/server"): 46}
    check_places(records, demo.identities, "demo")
    assert counts == {"client": 46, "server": 46}


# --- two engines, and engines that do what they should not ---------------------------------------------------------------


@dataclass
class Yard:
    """One agent, two engines with the same names and addresses, and some sockets of no use."""

    agent: Agent
    engines: tuple[Engine, Engine]

    def wait_for(self, url: str, count: int) -> list[Record]:
        found: list[Record] = []

        def are_there() -> bool:
            found[:] = self._of(url)
            return len(found) >= count

        with contextlib.suppress(AssertionError):
            wait_until(are_there, f"{count} records of {url}", 5)
        return found

    def _of(self, url: str) -> list[Record]:
        records = self.agent.log()
        exchanges = {record["exchange"] for record in records if record.get("url") == url}
        return [record for record in records if record["exchange"] in exchanges]


COMPOSE = """
services:
  web:
    image: tiny
    command: [serve, ":80"]
    environment:
      NAME: {name}
    networks:
      net:
        ipv4_address: 10.77.0.10
  client:
    image: tiny
    command: [get, "http://web/pause", "24h"]
    networks:
      net:
        ipv4_address: 10.77.0.11
networks:
  net:
    ipam:
      config:
        - subnet: 10.77.0.0/24
"""


@pytest.fixture(scope="module")
def yard(engine: Engine, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    # Short enough for a UNIX socket's path.
    with tempfile.TemporaryDirectory(prefix="np-") as name, contextlib.ExitStack() as stack:
        base = Path(name)
        other = stack.enter_context(Engine("b"))
        stack.enter_context(useless_socket(base / "slow.sock", answer=None))
        stack.enter_context(useless_socket(base / "lying.sock", answer=LIES))
        useless = [base / "absent.sock", base / "slow.sock", base / "lying.sock"]
        for number, each in enumerate((engine, other)):
            each.docker("build", "--quiet", "--tag", "tiny", str(tiny))
            directory = tmp_path_factory.mktemp("yard")
            (directory / "docker-compose.yml").write_text(COMPOSE.format(name=f"web-{number}"))
            each.compose(directory, "same", "up", "--detach")
        options = [
            word for path in (*useless, engine.socket, other.socket) for word in ("--container-socket", str(path))
        ]
        with Agent(base, *options, "--port", "80", allowed_rows=LOSS) as agent:
            yield Yard(agent, (engine, other))
        said = agent.stderr()
        for path, reason in (
            ("absent", "no such file or directory"),
            ("slow", "timed out"),
            ("lying", "not understood"),
        ):
            assert any(path in line and reason in line for line in said.splitlines()), said


LIES = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 31\r\n\r\n[{"Id": 7, "Names": [[[]]]}, {]'


@contextlib.contextmanager
def useless_socket(path: Path, answer: bytes | None) -> Iterator[None]:
    """An engine that says the same to everything, or nothing at all."""
    stop = threading.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    listener.settimeout(0.2)
    kept: list[socket.socket] = []

    def serve() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            kept.append(connection)
            if answer is not None:
                with contextlib.suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(answer)
                    connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for connection in (*kept, listener):
            connection.close()


def in_network(engine: Engine, name: str, *command: str) -> str:
    return engine.docker("run", "--rm", "--name", name, "--network", "same_net", "tiny", *command)


def identity_of(engine: Engine, name: str) -> str:
    return engine.docker("inspect", "--format", "{{.Id}}", name).strip()


def test_projects_with_equal_names_and_addresses_in_two_engines_are_told_apart(yard: Yard) -> None:
    for number, engine in enumerate(yard.engines):
        client = engine.docker(
            *("run", "--detach", "--network", "same_net", "--ip", "10.77.0.20", "tiny"),
            *("get", f"http://10.77.0.10/apart-{number}", "100ms", "100ms"),
        ).strip()  # fmt: skip
        engine.docker("wait", client)
        assert engine.docker("logs", client) == f"web-{number}\n"
        web = identity_of(engine, "same_web_1")
        records = yard.wait_for(f"/apart-{number}", 4)
        assert len(records) == 4
        for record in records:
            is_request = "url" in record
            source, destination = (client, web) if is_request else (web, client)
            assert record["source_container"]["container_id"] == source
            assert record["destination_container"]["container_id"] == destination
            assert record["destination_type"] == "container"
            of_web = record["destination_container" if is_request else "source_container"]
            assert of_web | {"container_id": ""} == {
                "service": "web",
                "image": "tiny",
                "container_id": "",
                "container_name": "same_web_1",
                "project": "same",
            }


@pytest.mark.parametrize("pause", ["150ms", "0ms"])
def test_a_container_that_lives_300_ms_or_less_is_named_right(yard: Yard, pause: str) -> None:
    engine = yard.engines[0]
    name = f"brief-{pause}"
    assert in_network(engine, name, "get", f"http://web/{name}", pause, pause) == "web-0\n"
    records = yard.wait_for(f"/{name}", 4)
    assert len(records) == 4
    for record in records:
        ends = {record["source_container"]["container_name"], record["destination_container"]["container_name"]}
        assert ends == {name, "same_web_1"}


def test_a_published_port_leads_to_its_container_and_back(yard: Yard) -> None:
    engine = yard.engines[0]
    engine.docker("run", "--detach", "--rm", "--name", "open", "--publish", "80:80", "tiny", "serve", ":80")
    bridge = engine.docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "bridge").strip()
    engine.inside("curl", "--silent", "--max-time", "5", f"http://{bridge}/published")
    records = yard.wait_for("/published", 4)
    engine.docker("kill", "open")
    of_client = [record for record in records if record["comm"] == "curl"]
    assert len(of_client) == 2
    request = next(record for record in of_client if "url" in record)
    assert request["destination_type"] == "container"
    assert request["destination_container"]["container_name"] == "open"
    assert "source_container" not in request


def test_an_engine_that_is_restarted_is_asked_again_and_the_capture_goes_on(yard: Yard) -> None:
    engine = yard.engines[1]
    container = engine.docker(
        *("run", "--detach", "--network", "same_net", "--name", "through", "tiny"),
        *("get", "http://10.77.0.10/through", "1500ms"),
    ).strip()  # fmt: skip
    engine.interrupt()
    records = yard.wait_for("/through", 4)
    assert {record["source_container"]["container_id"] for record in records if "url" in record} == {container}
    engine.start()
    assert in_network(engine, "after", "get", "http://web/after", "100ms", "100ms") == "web-1\n"
    records = yard.wait_for("/after", 4)
    assert len(records) == 4
    assert {record["source_container"]["container_name"] for record in records if "url" in record} == {"after"}


# --- opt-in --------------------------------------------------------------------------------------------------------------

SECRETS = ("hunter2-password", "tok-93b1c5d7", "postgres-secret-9", "argument-secret-4")


@dataclass(frozen=True)
class Row:
    """Of the truth table: an environment, and whether the process is profiled."""

    name: str
    environment: dict[str, str]
    without_values: bool
    with_values: bool


TABLE = (
    Row("local", {"ADI_PROFILE": "local"}, True, True),
    Row("dev", {"ADI_PROFILE": "dev", "ADI_PROFILE_NAME": "the shop"}, True, True),
    Row("prod", {"ADI_PROFILE": "prod"}, True, False),
    Row("disabled", {"ADI_PROFILE": "local", "ADI_PROFILE_DISABLED": "1"}, False, False),
    Row("nothing", {}, False, False),
    Row("not-disabled", {"ADI_PROFILE": "local", "ADI_PROFILE_DISABLED": "0"}, True, True),
    Row("disabled-alone", {"ADI_PROFILE_DISABLED": "0"}, False, False),
)


@pytest.fixture(scope="module")
def opted(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, tuple[list[Record], list[dict[str, Any]], dict[str, int]]]:
    """By whether values were given: records, documents, and pids of the rows."""
    found = {}
    with contextlib.ExitStack() as stack:
        agents = {}
        pids: dict[str, int] = {}
        for values in (False, True):
            directory = tmp_path_factory.mktemp("opt-in")
            options = ["--env-output", str(directory / "env.yml"), "--env-prefix", "ADI_,SHOP_"]
            # As that profiler's users have it, and as ours.
            environment = {} if values else {"ADI_PROFILE_ALLOWED": ""}
            options += ["--opt-in", "--opt-in-values", "local,dev"] if values else []
            with pytest.MonkeyPatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                agents[values] = stack.enter_context(Agent(directory, *options, allowed_rows=LOSS))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = subprocess.Popen(
            [tiny / "tiny", "serve", f"127.0.0.1:{port}"], env={"ADI_PROFILE": "local", "NAME": "x"}
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        wait_until(lambda: _listens(port), "the server listens", 10)
        for row in TABLE:
            environment = {
                **row.environment,
                "SHOP_DATABASE": f"postgres://shop:{SECRETS[2]}@db/shop",
                "SHOP_PASSWORD": SECRETS[0],
                "SHOP_API_TOKEN": SECRETS[1],
                "SHOP_COLOUR": "blue: or\n- not",
                "OTHER": "not told",
            }
            # exec(2) by a shell of another environment: what counts is that of the program which speaks.
            process = subprocess.Popen(
                [tiny / "tiny", "get", f"http://127.0.0.1:{port}/{row.name}?password={SECRETS[3]}", "300ms", "50ms"],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            pids[row.name] = process.pid
            assert process.wait(10) == 0
        time.sleep(0.5)
    for values, agent in agents.items():
        documents = list(yaml.safe_load_all((agent.output.parent / "env.yml").read_text()))
        found[values] = (agent.records, documents, pids)
    return found


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("values", [False, True], ids=["no values given", "values local,dev"])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_opt_in_profiles_who_asks_for_it(
    opted: dict[bool, tuple[list[Record], list[dict[str, Any]], dict[str, int]]], row: Row, values: bool
) -> None:
    records, documents, pids = opted[values]
    wanted = row.with_values if values else row.without_values
    pid = pids[row.name]
    assert sum(record["pid"] == pid for record in records) == (2 if wanted else 0)
    profiles = [document for document in documents if document["adi_profile_pid"] == pid]
    assert len(profiles) == (1 if wanted else 0)
    for profile in profiles:
        assert profile["adi_profile_match"] == row.environment["ADI_PROFILE"]
        assert profile.get("adi_profile_name") == row.environment.get("ADI_PROFILE_NAME")
        assert "tiny get http" in profile["adi_profile_cmdline"]
        assert profile["adi_profile_env"] == {
            **row.environment,
            "SHOP_DATABASE": "postgres://shop:[redacted]@db/shop",
            "SHOP_PASSWORD": "[redacted]",
            "SHOP_API_TOKEN": "[redacted]",
            "SHOP_COLOUR": "blue: or\n- not",
        }
        assert "error" not in profile


def test_no_planted_secret_is_in_the_environment_profiles(
    opted: dict[bool, tuple[list[Record], list[dict[str, Any]], dict[str, int]]],
) -> None:
    for _, documents, _ in opted.values():
        assert documents
        text = repr(documents)
        assert [secret for secret in SECRETS if secret in text] == []


def test_map_prints_what_the_records_say(engine: Engine, tiny: Path, directory: Path) -> None:
    """The command itself, on records of this run."""
    with Agent(directory, "--port", "18080", allowed_rows=LOSS) as agent:
        server = subprocess.Popen([tiny / "tiny", "serve", "127.0.0.1:18080"])
        try:
            wait_until(lambda: _listens(18080), "the server listens", 10)
            for _ in range(3):
                subprocess.run([tiny / "tiny", "get", "http://127.0.0.1:18080/"], check=True, capture_output=True)
            agent.wait_for_records(12)
        finally:
            server.terminate()
            server.wait(5)
    printed = subprocess.run([NETPROFILER, "map", agent.output], capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    assert len(lines) == 2
    assert lines[1].split()[:3] == ["tiny", "tiny", "3"]
