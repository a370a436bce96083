"""A Docker engine of the tests' own, in a network namespace of its own, with images made of this host's Debian packages.

Nothing of it is the host's: data, sockets, bridges and netfilter rules go with the engine, and addresses in it lead nowhere
else. The images' layers are kept in CACHE, so that a second run makes them no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from netprofiler.sources.processes import descendants
from tests.real.harness.programs import REPOSITORY, wait_until

CACHE = Path("/var/cache/netprofiler-tests/docker")
START_SECONDS = 60.0
COMMAND_SECONDS = 150.0
BASE_IMAGE = "netprofiler-tests-base"
AGENT_BASE_IMAGE = "netprofiler-tests-agent-base"
PACKAGES = (
    *(
        "bash",
        "dash",
        "coreutils",
        "sed",
        "grep",
        "libc-bin",
        "openssl",
        "python3",
        "nodejs",
        "openjdk-17-jre-headless",
        "nginx",
    ),
    "python3-bpfcc",
)
LEFT_OUT = re.compile(r"/usr/(?:share/(?:doc|man|locale|icons|info)|include|share/nodejs/npm)/")
ALSO = (
    *(
        "/bin",
        "/sbin",
        "/lib",
        "/lib64",
        "/usr/bin/sh",
        "/usr/bin/java",
        "/etc/alternatives/java",
        "/etc/ld.so.cache",
        "/etc/nsswitch.conf",
    ),
    *("/etc/ssl/openssl.cnf", "/etc/passwd", "/etc/group", "/tmp", "/var/log/nginx", "/var/lib/nginx"),
)
"""Links, and what packages make when they are installed."""


class Engine:
    """``with Engine("a") as engine:`` dockerd runs; ``engine.docker("ps")``, ``engine.compose(directory, "up")``."""

    def __init__(self, name: str, data: Path | None = None) -> None:
        self._name = name
        self._directory = Path(tempfile.mkdtemp(prefix=f"npd-{name}-"))
        self._data = data or self._directory / "data"
        self.socket = self._directory / "docker.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._namespaces: subprocess.Popen[bytes] | None = None
        """Holds them, also while dockerd is away."""
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{self.socket}",
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
            "DOCKER_CONFIG": str(self._directory),
        }

    def __enter__(self) -> Engine:
        try:
            self.start()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Also after `stop`: the containers that were there are known again."""
        self._data.mkdir(parents=True, exist_ok=True)
        options = [
            "--data-root",
            self._data,
            "--exec-root",
            self._directory / "exec",
            "--host",
            f"unix://{self.socket}",
        ]
        options += ["--pidfile", self._directory / "pid", "--storage-driver", "overlay2", "--log-level", "error"]
        options += ["--live-restore"]
        if self._namespaces is None:
            script = "mount --make-rprivate / && ip link set lo up && echo && exec sleep infinity"
            command = ["unshare", "--net", "--mount", "sh", "-c", script]
            self._namespaces = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            assert self._namespaces.stdout is not None
            self._namespaces.stdout.readline()
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["nsenter", "--target", str(self._namespaces.pid), "--net", "--mount", "dockerd", *map(str, options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, f"dockerd {self._name} answers", START_SECONDS)

    def stop(self) -> None:
        """The containers end with it."""
        try:
            identities = self.docker("ps", "--all", "--quiet", check=False).split()
            if identities:
                self.docker("rm", "--force", "--volumes", *identities, check=False)
            self.docker("network", "prune", "--force", check=False)
        finally:
            self._kill()

    def _kill(self) -> None:
        for process in (self._process, self._namespaces):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)
            if process is not None and process.stdout is not None:
                process.stdout.close()
        self._process = self._namespaces = None
        # What kept containers running without dockerd, and they, where it could not take them away itself.
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.fsencode(self._directory) in (entry / "cmdline").read_bytes():
                    for pid in (*descendants(int(entry.name)), int(entry.name)):
                        os.kill(pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """dockerd alone ends; its containers go on, until and after `start`."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"dockerd ended: {(self._directory / 'log').read_text(errors='replace')[-2000:]}")
        return self.socket.exists() and subprocess.run(
            ["docker", "version"], env=self.environment, capture_output=True, timeout=20, check=False
        ).returncode == 0  # fmt: skip

    def docker(self, *arguments: str, check: bool = True, stdin: Any = None, merged: bool = False) -> str:
        """What it prints; `merged`: its standard error, too."""
        return self._run(["docker", *arguments], check=check, stdin=stdin, merged=merged)

    def compose(self, directory: Path, project: str, *arguments: str, settings: Mapping[str, str] | None = None) -> str:
        command = ["docker-compose", "--project-name", project, "--project-directory", str(directory)]
        command += ["--file", str(directory / "docker-compose.yml"), *arguments]
        return self._run(command, environment={**self.environment, **(settings or {})})

    def inside(self, *command: str) -> str:
        """On the engine's host: in its network namespace, in no container."""
        return self._run(["nsenter", "--target", str(self.pid), "--net", *command])

    def _run(
        self,
        command: Sequence[str],
        *,
        check: bool = True,
        stdin: Any = None,
        environment: dict[str, str] | None = None,
        merged: bool = False,
    ) -> str:
        result = subprocess.run(
            command,
            env=environment or self.environment,
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(
                f"{' '.join(command)}: {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
            )
        return result.stdout + (result.stderr if merged else "")

    # --- images ------------------------------------------------------------------------------------------------------

    def make_images(self) -> None:
        """The base images, where they are not there yet, or were made of other packages."""
        made_of = _versions(PACKAGES)
        if not self._has(BASE_IMAGE, made_of):
            with tempfile.TemporaryFile() as names:
                names.write("\0".join(_files(PACKAGES)).encode())
                names.seek(0)
                # --no-recursion holds for what follows it.
                tar = subprocess.Popen(
                    ["tar", "-C", "/", "--no-recursion", "--ignore-failed-read", "--null", "-T", "-", "-cf", "-"],
                    stdin=names,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
                self.docker("import", "--change", f"LABEL made_of={made_of}", "-", BASE_IMAGE, stdin=tar.stdout)
                assert tar.stdout is not None
                tar.stdout.close()
                tar.wait(10)
        needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
        lock = (REPOSITORY / "requirements.lock").read_bytes() + "".join(f"\n{name}" for name in needed).encode()
        made_of = hashlib.sha256(lock + made_of.encode()).hexdigest()
        if not self._has(AGENT_BASE_IMAGE, made_of):
            with tempfile.TemporaryDirectory() as name:
                _copy_distributions(Path(name) / "lib", re.findall(r"^([\w.-]+)[=>]=", lock.decode(), re.MULTILINE))
                (Path(name) / "Dockerfile").write_text(
                    f"FROM {BASE_IMAGE}\nCOPY lib /opt/netprofiler/lib\nLABEL made_of={made_of}\n"
                )
                self.docker("build", "--quiet", "--tag", AGENT_BASE_IMAGE, name)

    def _has(self, image: str, made_of: str) -> bool:
        text = self.docker("image", "inspect", "--format", '{{index .Config.Labels "made_of"}}', image, check=False)
        return text.strip() == made_of


def _versions(packages: Iterable[str]) -> str:
    text = subprocess.run(["dpkg-query", "-W", *_closure(packages)], capture_output=True, check=False).stdout
    return hashlib.sha256(text + repr(ALSO).encode()).hexdigest()


def _closure(packages: Iterable[str]) -> list[str]:
    """With all that they depend on; of alternatives the first that is installed."""
    text = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}\t${Depends}, ${Pre-Depends}\t${Provides}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    depends = {}
    for line in text.splitlines():
        package, needed, _ = line.split("\t")
        depends[package] = needed
    found: dict[str, None] = {}
    todo = list(packages)
    while todo:
        package = todo.pop()
        if package in found:
            continue
        found[package] = None
        for group in depends.get(package, "").split(","):
            names = [re.split(r"[ (:]", name.strip())[0] for name in group.split("|")]
            todo += next(([name] for name in names if name in depends), [])
    return sorted(found)


def _files(packages: Iterable[str]) -> list[str]:
    """Below the directories where they really are: /bin is a link."""
    text = subprocess.run(["dpkg", "-L", *_closure(packages)], capture_output=True, text=True, check=False).stdout
    found = set(ALSO)
    for name in text.splitlines():
        if name.startswith("/") and os.path.lexists(name) and (os.path.islink(name) or not os.path.isdir(name)):
            directory, base = os.path.split(name)
            path = os.path.join(os.path.realpath(directory), base)
            if not LEFT_OUT.match(path):
                found.add(path)
    return sorted(found)


def _copy_distributions(target: Path, names: Iterable[str]) -> None:
    """What a pip install --target would have put there."""
    site = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for name in names:
        try:
            files = importlib.metadata.distribution(name).files or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        for file in files:
            source = site / file
            if ".." not in file.parts and source.is_file() and source.suffix != ".pyc":
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / file)


def service_lines(text: str) -> Iterator[dict[str, Any]]:
    """What services wrote of their requests, out of ``docker-compose logs``."""
    for line in text.splitlines():
        start = line.find('{"service"')
        if start >= 0:
            yield json.loads(line[start:])
