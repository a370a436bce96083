"""Kernels that distributions ship, stock, in virtual machines: the tests run inside, and what they say comes back.

    scripts/kernels.py [--golden] [--table] [--tests PYTEST_ARGUMENT...] [MACHINE...]     without a name: all of MACHINES

A machine is a kernel of a Debian suite, unpacked from its package, and an initrd with everything else: a user land by
debootstrap, a Python environment from the lock file, this checkout, the Go programs that the tests need. It has no disk and
no network, and needs no module. qemu emulates it in software, so neither KVM nor a CPU of its architecture is needed.

What is made is kept in build/kernels, each part by what it is made of; there is what each machine said, too. Root is needed, for
debootstrap. Packages come from the mirror that apt is configured with. --golden writes what `doctor` said to tests/golden/doctor,
with which it is compared otherwise; --table writes the results into the README. Exit status 0 when everything passed.
"""

import argparse
import base64
import compileall
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from elftools.elf.elffile import ELFFile

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD: Final = ROOT / "build" / "kernels"
INSIDE: Final = Path("/netprofiler")
"""Where this checkout is in a machine."""
LAUNCHER: Final = f"#!{INSIDE}/.venv/bin/python\nfrom netprofiler.__main__ import main\nraise SystemExit(main())\n"
LOCK: Final = ROOT / "requirements-dev.lock"

MEMORY_MB: Final = 4096
"""The initrd takes one of them, what the tests write and the agents' rings another."""
RUN_SECONDS: Final = 290
"""From power on to power off."""
SEND_SECONDS: Final = 50
"""Of these, to boot, and to send what the tests said."""
INSTALL_SECONDS: Final = 1200
"""For a user land: some 150 packages, for another architecture in emulation."""

USERLAND: Final = (
    *("python3", "python3-bpfcc"),  # what netprofiler needs
    *(
        "gcc",
        "libc6-dev",
        "curl",
        "openssl",
        "iproute2",
        "procps",
        "nginx-light",
        "nghttp2-client",
    ),  # what its tests need
)
COMPRESSIONS: Final = ((b"\xfd7zXZ\0", ["xz", "-dc"]), (b"\x28\xb5\x2f\xfd", ["zstd", "-dc"]))
CPUS: Final = 2
PACK_SECONDS: Final = 300
UNWANTED: Final = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt",
    "usr/bin/*-lto-dump-*",
    "usr/lib/gcc/*/*/lto1",
    "usr/lib/gcc/*/*/lib[a-z]*san*",
    "usr/lib/*/lib[a-z]*san.so*",
    "usr/lib/*/gconv",
    "usr/lib/*/libgprofng*",
    "usr/bin/*-ld.gold",
    "usr/bin/*-dwp",
    "boot",
    "lib/modules",
)

DISTRIBUTIONS: Final = (
    "netprofiler",
    "pytest",
    "pytest-timeout",
    "hypothesis",
    "jsonschema",
    "aiohttp",
    "httpx",
    "requests",
)
"""From the lock file, each with what it requires."""


TESTS: Final = {
    # But for what is read back from files: whether they have changed is told by a clock that stands still while an emulated
    # CPU waits for a real one.
    "plaintext": (
        "tests/kernel/test_calls.py::test_send_and_receive[write-read]",
        "tests/kernel/test_calls.py::test_send_and_receive[writev-readv]",
        "tests/kernel/test_calls.py::test_send_and_receive[sendto-recvfrom]",
        "tests/kernel/test_calls.py::test_send_and_receive[sendmsg-recvmsg]",
        "tests/kernel/test_calls.py::test_send_and_receive[sendmmsg-recvmmsg]",
        "tests/kernel/test_calls.py::test_transport[ipv6-sendto-recvmmsg]",
        "tests/kernel/test_calls.py::test_transport[unix-sendmmsg-recvfrom]",
        "tests/kernel/test_calls.py::test_transport[pair-write-recvmsg]",
        "tests/kernel/test_calls.py::test_many_messages_in_a_call",
        "tests/kernel/test_calls.py::test_a_mebibyte_each_way",
    ),
    "Go TLS": ("tests/real/test_go_tls.py::test_each_build[1.27.4-plain]",),
    "OpenSSL": ("tests/real/test_tls_programs.py::test_curl_to_nginx",),
    "HTTP/2": ("tests/real/test_http2_programs.py::test_curl_to_nginx",),
    "metrics": ("tests/kernel/test_metrics_page.py",),
    "attach, detach": (
        "tests/kernel/test_probe_ways.py",
        "tests/kernel/test_command_line.py::test_no_btf",
        "tests/unit/sources/test_features.py",
    ),
}
"""By subject, as the table has them. The ledger is checked by each agent's end."""


GO_VERSIONS: Final = ("1.27.4",)


@dataclass(frozen=True, slots=True)
class Machine:
    """Suites of Debian: whose kernel, and whose user land."""

    name: str
    kernel: str
    userland: str = "bookworm"
    architecture: str = "amd64"


MACHINES: Final = (
    Machine("5.10", "bullseye"),
    Machine("6.1", "bookworm"),
    Machine("6.12", "trixie"),
    Machine("sid", "sid"),
)
GOLDEN: Final = ROOT / "tests" / "golden" / "doctor"
README: Final = ROOT / "README.md"
TABLE: Final = ("<!-- scripts/kernels.py --table writes from here -->\n", "<!-- to here -->\n")
PYTHONS: Final = {"bookworm": "3.11", "trixie": "3.13"}


def say(text: str) -> None:
    print(f"kernels: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, seconds: float = 600, cwd: Path | None = None, show: bool = False) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"kernels: {shlex.join(map(str, command))}: {(done.stderr or '')[-2000:]}")
    return done.stdout


# --- what Debian has ---------------------------------------------------------------------------------------------------


def mirror() -> str:
    """Of apt's own configuration: the first that has Debian's main archive."""
    for line in run("apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT) $(CODENAME)").splitlines():
        uri, component, suite = line.split()
        if component == "main" and "-" not in suite:
            return uri
    raise SystemExit("kernels: apt is configured with no Debian mirror")


class Apt:
    """Apt, of another suite or architecture than this machine's, with files of its own."""

    def __init__(self, suite: str, architecture: str) -> None:
        self._home = BUILD / f"apt-{suite}-{architecture}"
        for name in ("lists/partial", "cache/archives/partial"):
            (self._home / name).mkdir(parents=True, exist_ok=True)
        (self._home / "sources.list").write_text(f"deb [arch={architecture}] {mirror()} {suite} main\n")
        (self._home / "status").touch()
        self._options = [
            *("-o", f"Dir::Etc::SourceList={self._home}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null"),
            *("-o", f"Dir::State::Lists={self._home}/lists", "-o", f"Dir::State::Status={self._home}/status"),
            *("-o", f"Dir::Cache={self._home}/cache", "-o", f"APT::Architecture={architecture}"),
            *("-o", f"APT::Architectures={architecture}", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User="),
        ]
        run("apt-get", *self._options, "-qq", "update")

    def newest_kernel(self, architecture: str) -> str:
        """The package of the kernel that the suite's linux-image-ARCHITECTURE stands for."""
        package = f"linux-image-{architecture}"
        # Since Linux 7 the image that is depended on is an empty package, too.
        for pattern in ("linux-image-[0-9]", "linux-binary-[0-9]"):
            found = re.search(rf"Depends: ({pattern}\S+)", run("apt-cache", *self._options, "depends", package))
            package = found[1] if found else package
        return package

    def download(self, package: str, directory: Path) -> Path:
        run("apt-get", *self._options, "-qq", "download", package, cwd=directory)
        (file,) = directory.glob(f"{package}_*.deb")
        return file


def fetch_kernel(suite: str, architecture: str) -> Path:
    """The kernel's image, which has its release in its name."""
    directory = BUILD / f"kernel-{suite}-{architecture}"
    if not list(directory.glob("vmlinuz-*")):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        apt = Apt(suite, architecture)
        package = apt.download(apt.newest_kernel(architecture), directory)
        unpacked = directory / "unpacked"
        run("dpkg-deb", "-x", package, unpacked)
        (image,) = unpacked.rglob("vmlinuz*")
        (directory / "btf").write_bytes(find_btf(image.read_bytes()))
        release = package.name.split("_")[0].split("-", 2)[2]
        image.rename(directory / f"vmlinuz-{release}")
        shutil.rmtree(unpacked)
        package.unlink()
    (image,) = directory.glob("vmlinuz-*")
    return image


def find_btf(image: bytes) -> bytes:
    """What the kernel will show as /sys/kernel/btf/vmlinux; nothing where it has none."""
    for magic, command in COMPRESSIONS:
        for found in re.finditer(re.escape(magic), image):
            unpacked = subprocess.run(
                command, input=image[found.start() :], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
            ).stdout
            if unpacked.startswith(b"\x7fELF"):
                section = ELFFile(io.BytesIO(unpacked)).get_section_by_name(".BTF")
                return section.data() if section else b""
    return b""


def uname(image: Path) -> tuple[str, str]:
    """Release and version, from the header of a kernel for x86 (Documentation/arch/x86/boot.rst: kernel_version)."""
    data = image.read_bytes()
    at = 0x200 + int.from_bytes(data[0x20E:0x210], "little")
    text = data[at : data.index(0, at)].decode()
    release, _, rest = text.partition(" ")
    return release, rest[rest.index("#") :]


# --- the initrd, in layers: later ones are put over the earlier -----------------------------------------------------------


def hashed(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def pack(directory: Path, layer: Path) -> None:
    """An archive of a directory, as the kernel reads it; not compressed, which would take emulation longer to undo."""
    partial = layer.with_suffix(".new")
    with (
        partial.open("wb") as file,
        subprocess.Popen(["find", ".", "-print0"], cwd=directory, stdout=subprocess.PIPE) as find,
    ):
        subprocess.run(
            ["cpio", "--null", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            cwd=directory,
            stdin=find.stdout,
            stdout=file,
            check=True,
            timeout=PACK_SECONDS,
        )
    partial.rename(layer)


def userland_layer(suite: str, architecture: str) -> Path:
    """The directory is kept beside the archive: programs are compiled in it."""
    directory = BUILD / f"userland-{suite}-{architecture}-{hashed(*USERLAND, *UNWANTED)}"
    layer = directory.with_name(f"{directory.name}.cpio")
    if not layer.exists():
        say(f"installing Debian {suite} for {architecture}")
        shutil.rmtree(directory, ignore_errors=True)
        run(
            *("debootstrap", "--variant=minbase", f"--arch={architecture}", f"--include={','.join(USERLAND)}"),
            *(suite, directory, mirror()),
            seconds=INSTALL_SECONDS,
        )
        for pattern in UNWANTED:
            for path in directory.glob(pattern):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        (directory / INSIDE.relative_to("/")).mkdir()
        pack(directory, layer)
    return layer


def needed_distributions() -> list[str]:
    """DISTRIBUTIONS and all that they require, as this environment has them."""
    wanted = [*DISTRIBUTIONS]
    found: set[str] = set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for requirement in importlib.metadata.requires(name) or ():
            if "extra ==" not in requirement:
                (required,) = re.findall(r"^[\w.-]+", requirement)
                try:
                    importlib.metadata.version(required)
                except importlib.metadata.PackageNotFoundError:
                    continue  # of another Python, or another system
                wanted.append(required)
    return sorted(found - {"netprofiler"})


def locked(names: Iterable[str]) -> str:
    """Their part of the lock file."""
    wanted = set(names)
    entries = re.split(r"^(?=\S+==)", LOCK.read_text(), flags=re.MULTILINE)
    return "".join(entry for entry in entries if entry.split("==")[0].split("[")[0] in wanted)


def python_layer(suite: str, architecture: str) -> Path:
    """.venv for the user land's Python, made without running it."""
    version = PYTHONS[suite]
    requirements = locked(needed_distributions())
    layer = BUILD / f"python-{version}-{architecture}-{hashed(requirements, LAUNCHER)}.cpio"
    if not layer.exists():
        say(f"Python {version} for {architecture}")
        directory = layer.with_suffix("")
        shutil.rmtree(directory, ignore_errors=True)
        venv = directory / INSIDE.relative_to("/") / ".venv"
        packages = venv / "lib" / f"python{version}" / "site-packages"
        (venv / "bin").mkdir(parents=True)
        (BUILD / "requirements.txt").write_text(requirements)
        machine = {"amd64": "x86_64", "arm64": "aarch64"}[architecture]
        platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in (36, 34, 28, 17)]
        platforms += [
            f"--platform=manylinux2014_{machine}",
            f"--platform=manylinux1_{machine}",
            f"--platform=manylinux2010_{machine}",
        ]
        run(
            *(
                ROOT / ".venv/bin/pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
            ),
            *("--require-hashes", "-r", BUILD / "requirements.txt", "--target", packages),
            *(f"--python-version={version}", "--implementation=cp", *platforms),
        )
        (venv / "pyvenv.cfg").write_text(
            f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n"
        )
        (packages / "netprofiler.pth").write_text(f"{INSIDE}\n")
        (venv / "bin" / "python").symlink_to("/usr/bin/python3")
        command = venv / "bin" / "netprofiler"
        command.write_text(LAUNCHER)
        command.chmod(0o755)
        pack(directory, layer)
    return layer


def compile_objects(machine: Machine, kernel: Path, userland: Path, python: Path) -> Path:
    """A directory of objects for this kernel, made in the machine's user land."""
    directory = BUILD / "objects" / machine.name
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    inside = INSIDE / BUILD.relative_to(ROOT)
    release, version = uname(kernel)
    mounted = userland / INSIDE.relative_to("/")
    script = f"""mount -t proc proc {userland}/proc
mount -t sysfs sysfs {userland}/sys
mount --bind {ROOT} {mounted}
mount --bind {python}{INSIDE}/.venv {mounted}/.venv
exec chroot {userland} {INSIDE}/.venv/bin/python {INSIDE}/scripts/kernels_compile.py "$@"
"""
    run(
        *("env", f"CACHE_DIRECTORY={inside}/objects/{machine.name}", "unshare", "--mount", "sh", "-c", script, "sh"),
        *(inside / kernel.parent.name / "btf", release, version, str(CPUS)),
    )
    return directory


def project_layer(script: str, objects: Path | None) -> Path:
    """What changes from run to run: this checkout and what it has built, the first process, and what it runs."""
    layer = BUILD / "project.cpio"
    directory = BUILD / "project"
    shutil.rmtree(directory, ignore_errors=True)
    inside = directory / INSIDE.relative_to("/")
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (inside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, inside / name)
    copy_go_programs(inside)
    if objects is not None:
        shutil.copytree(objects, directory / "var/cache/netprofiler")
    compileall.compile_dir(inside / "netprofiler", quiet=2)
    (directory / "run.sh").write_text(script)
    shutil.copy2(ROOT / "scripts" / "kernels-init.sh", directory / "init")
    (directory / "init").chmod(0o755)
    pack(directory, layer)
    shutil.rmtree(directory)
    return layer


def build_go_programs() -> None:
    """Those that the tests run, in .cache, with the toolchains of the other tests."""
    for version in GO_VERSIONS:
        run(
            ROOT / ".venv/bin/python",
            "-c",
            f"from tests.real.harness.go_programs import build; build({version!r}, 'plain')",
            cwd=ROOT,
        )


def copy_go_programs(inside: Path) -> None:
    cache = Path(".cache") / "go_tls"
    (inside / cache).mkdir(parents=True)
    for version in GO_VERSIONS:
        for program in (ROOT / cache).glob(f"go_tls-{version}-plain-*"):
            shutil.copy2(program, inside / cache / program.name)


# --- a run --------------------------------------------------------------------------------------------------------------


def guest_script(tests: Sequence[str], seconds: float) -> str:
    """The tests are interrupted while there is time left to send what they said."""
    python = INSIDE / ".venv/bin/python"
    return f"""cd {INSIDE}
export NETPROFILER_REQUIRE_KERNEL=1 TERM=dumb
uname -r >/results/release
{python} -c 'import platform; print(platform.python_version())' >/results/python
.venv/bin/netprofiler doctor --json >/results/doctor.json
{{ timeout -s INT {seconds - SEND_SECONDS:.0f} {python} -m pytest -v --tb=short -p no:cacheprovider --junitxml=/results/tests.xml --durations=10 {shlex.join(tests)}; echo $? >/results/status; }} 2>&1 | tee /results/pytest.log
"""


def boot(machine: Machine, kernel: Path, initrd: Path, console: Path, seconds: float) -> None:
    if machine.architecture == "amd64":
        command = ["qemu-system-x86_64", "-cpu", "max"]
        terminal = "ttyS0"
    else:
        command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on"]
        terminal = "ttyAMA0"
    command += [
        *("-accel", "tcg,thread=multi", "-smp", str(CPUS), "-m", str(MEMORY_MB), "-nic", "none", "-display", "none"),
        *(
            "-no-reboot",
            "-kernel",
            str(kernel),
            "-initrd",
            str(initrd),
            "-serial",
            f"file:{console}",
            "-monitor",
            "none",
        ),
        *("-append", f"console={terminal} quiet panic=-1"),
    ]
    with subprocess.Popen(["nice", "-n", "10", *command], stdin=subprocess.DEVNULL, process_group=0) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            say(f"{machine.name}: not done after {seconds:g} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def results(console: Path, directory: Path) -> bool:
    """What the machine sent, unpacked."""
    text = console.read_text(errors="replace").replace("\r", "")
    found = re.search(r"^kernels: results begin\n(.*?)^kernels: results end$", text, re.DOTALL | re.MULTILINE)
    if not found:
        return False
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(found[1]))) as archive:
        archive.extractall(directory, filter="data")
    return True


# --- what came of it ------------------------------------------------------------------------------------------------------


def outcomes(report: Path) -> dict[str, tuple[int, int]]:
    """Subject → tests that passed, of how many that ran."""
    counts = dict.fromkeys(TESTS, (0, 0))
    for case in ET.parse(report).iter("testcase"):
        module = f"{(case.get('classname') or '').replace('.', '/')}.py"
        name = (case.get("name") or "").partition("[")[0]
        for subject, wanted in TESTS.items():
            if any(test.partition("[")[0] in (module, f"{module}::{name}") for test in wanted):
                passed, ran = counts[subject]
                counts[subject] = (passed + all(child.tag == "properties" for child in case), ran + 1)
    return counts


def said_by_doctor(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """What `doctor --json` said, but for what is another with each build of a kernel or a library."""
    said: dict[str, Any] = json.loads((directory / "doctor.json").read_text())
    release = (directory / "release").read_text().strip()
    for check in said["checks"]:
        for key in ("text", "cost", "remedy"):
            if key in check:
                text = check[key].replace(release, "RELEASE")
                text = re.sub(r"\d+(\.\d+)? MB", "N MB", text)
                text = re.sub(r"(OpenSSL|GnuTLS|libbpf\.so\.1 \(v)\s*[\d.]+", r"\1 N", text)
                check[key] = re.sub(r"\d+ probes", "N probes", text)
    return said


def check_doctor(machine: Machine, directory: Path, *, write: bool) -> bool:
    golden = GOLDEN / f"{machine.name}.json"
    text = json.dumps(said_by_doctor(directory), indent=1, ensure_ascii=False) + "\n"
    if write:
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text)
    if golden.exists() and golden.read_text() == text:
        return True
    (directory / "doctor.normal.json").write_text(text)
    say(f"{machine.name}: doctor says something else than {golden}: {directory / 'doctor.normal.json'}")
    return False


def row(machine: Machine, directory: Path) -> str:
    bcc = next(
        check["text"]
        for check in json.loads((directory / "doctor.json").read_text())["checks"]
        if check["name"] == "BCC"
    )
    facts = [
        *((directory / "release").read_text().strip(), machine.architecture),
        *((directory / "python").read_text().strip(), bcc.split()[0]),
    ]
    counts = [f"{passed} of {ran}" if ran else "not run" for passed, ran in outcomes(directory / "tests.xml").values()]
    return f"| {' | '.join([*facts, *counts])} |\n"


def write_table() -> None:
    """Of all machines that have results."""
    names = ["kernel", "", "Python", "BCC", *TESTS]
    lines = [f"| {' | '.join(names)} |\n", f"|{'---|' * len(names)}\n"]
    for machine in MACHINES:
        directory = BUILD / "results" / machine.name
        if (directory / "tests.xml").exists():
            lines.append(row(machine, directory))
    before, _, rest = README.read_text().partition(TABLE[0])
    _, _, behind = rest.partition(TABLE[1])
    README.write_text("".join((before, TABLE[0], *lines, TABLE[1], behind)))


def run_machine(machine: Machine, tests: Sequence[str], seconds: float) -> Path | None:
    """Where its results are; None where there are none."""
    kernel = fetch_kernel(machine.kernel, machine.architecture)
    userland = userland_layer(machine.userland, machine.architecture)
    python = python_layer(machine.userland, machine.architecture)
    objects = compile_objects(machine, kernel, userland.with_suffix(""), python.with_suffix(""))
    initrd = BUILD / "initrd"
    with initrd.open("wb") as whole:
        for layer in (userland, python, project_layer(guest_script(tests, seconds), objects)):
            with layer.open("rb") as part:
                shutil.copyfileobj(part, whole)
            whole.write(bytes(-whole.tell() % 4))
    directory = BUILD / "results" / machine.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    started = time.monotonic()
    boot(machine, kernel, initrd, directory / "console", seconds)
    took = time.monotonic() - started
    initrd.unlink()
    if not results(directory / "console", directory) or not (directory / "tests.xml").exists():
        say(f"{machine.name}: no results after {took:.0f} s; see {directory / 'console'}")
        return None
    counts = outcomes(directory / "tests.xml")
    told = ", ".join(f"{subject} {passed} of {ran}" for subject, (passed, ran) in counts.items())
    status = (directory / "status").read_text().strip()
    failed = "" if status == "0" else f", pytest's exit status {status}"
    say(f"{machine.name}: {(directory / 'release').read_text().strip()}: {told}; {took:.0f} s{failed}")
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("machines", nargs="*", metavar="MACHINE")
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--tests", nargs="+", default=[test for tests in TESTS.values() for test in tests])
    parser.add_argument("--seconds", type=float, default=RUN_SECONDS)
    arguments = parser.parse_args()
    chosen = [machine for machine in MACHINES if machine.name in arguments.machines or not arguments.machines]
    if len(chosen) < len(arguments.machines):
        parser.error(f"there are {', '.join(machine.name for machine in MACHINES)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    build_go_programs()
    good = True
    for machine in chosen:
        directory = run_machine(machine, arguments.tests, arguments.seconds)
        good = directory is not None and good
        if directory is not None:
            good = check_doctor(machine, directory, write=arguments.golden) and good
            good = (directory / "status").read_text() == "0\n" and good
    if arguments.table:
        write_table()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
