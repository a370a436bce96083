"""netprofiler doctor: each check on a machine made of files, and the whole on this one."""

from __future__ import annotations

import json
import re
import resource
from dataclasses import replace
from pathlib import Path

import pytest

from netprofiler.cli import main
from netprofiler.commands import doctor
from netprofiler.commands.doctor import CHECKS, Check, Finding, Host, State
from netprofiler.errors import CommandError, ExitCode
from netprofiler.sources import features
from netprofiler.sources.probes import Analysis, Library, Probe, Purpose
from netprofiler.sources.probes import Finding as ProbeFinding

ALL_CAPABILITIES = "CapEff:\t000001ffffffffff\n"


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine where all is well."""
    write(tmp_path, "proc/self/status", f"Name:\tx\n{ALL_CAPABILITIES}")
    write(tmp_path, "sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    write(tmp_path, "sys/kernel/btf/vmlinux", "btf")
    write(tmp_path, "proc/self/mounts", "proc /proc proc rw 0 0\n")
    (tmp_path / "proc/self/ns").mkdir()
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    return Host(tmp_path, user=0, system="Linux", machine="x86_64", release="6.1.0-18-amd64")


def add_process(host: Host, pid: int, name: str, descriptor: str, details: str = "") -> None:
    write(host.root, f"proc/{pid}/comm", f"{name}\n")
    write(host.root, f"proc/{pid}/fdinfo/7", details)
    (host.root / f"proc/{pid}/fd").mkdir()
    (host.root / f"proc/{pid}/fd/7").symlink_to(descriptor)


@pytest.mark.parametrize(
    ("system", "machine", "state"),
    [
        ("Linux", "x86_64", State.OK),
        ("Linux", "aarch64", State.OK),
        ("Linux", "riscv64", State.MISSING),
        ("Linux", "i686", State.MISSING),
        ("Darwin", "x86_64", State.MISSING),
    ],
)
def test_system(host: Host, system: str, machine: str, state: State) -> None:
    assert doctor.check_system(replace(host, system=system, machine=machine)).state is state


@pytest.mark.parametrize(
    ("release", "state"),
    [
        ("5.10.0-8-amd64", State.OK),
        ("6.18.44-fc-v669", State.OK),
        ("10.0", State.OK),
        ("5.9.16", State.MISSING),
        ("4.19.0", State.MISSING),
        ("strange", State.MISSING),
    ],
)
def test_kernel(host: Host, release: str, state: State) -> None:
    finding = doctor.check_kernel(replace(host, release=release))
    assert finding.state is state
    assert release in finding.text


def ordinary(host: Host) -> Host:
    """As somebody who may do nothing."""
    write(host.root, "proc/self/status", "CapEff:\t0000000000000000\n")
    return replace(host, user=1000)


def test_a_user_with_the_capabilities_may_what_root_may(host: Host) -> None:
    write(host.root, "proc/self/status", f"CapEff:\t{1 << 38 | 1 << 39 | 1 << 19:016x}\n")
    user = replace(host, user=1000)
    assert doctor.check_root(user).state is State.OK
    assert doctor.check_capabilities(user).state is State.OK
    assert doctor.check_other_agents(user).state is State.OK


def test_root(host: Host) -> None:
    assert doctor.check_root(host).state is State.OK
    finding = doctor.check_root(ordinary(host))
    assert finding.state is State.MISSING
    assert "sudo" in (finding.remedy or "")


@pytest.mark.parametrize(
    ("effective", "state", "lacking"),
    [
        (0x1FFFFFFFFFF, State.OK, None),
        (1 << 38 | 1 << 39 | 1 << 19, State.OK, None),  # CAP_PERFMON, CAP_BPF, CAP_SYS_PTRACE
        (1 << 21 | 1 << 19, State.OK, None),  # CAP_SYS_ADMIN stands for both
        (1 << 38 | 1 << 39, State.WARNING, "CAP_SYS_PTRACE"),
        (1 << 39 | 1 << 19, State.MISSING, "CAP_PERFMON"),
        (0xA80425FB, State.MISSING, "CAP_BPF"),  # a container's default
    ],
)
def test_capabilities(host: Host, effective: int, state: State, lacking: str | None) -> None:
    write(host.root, "proc/self/status", f"CapPrm:\t0\nCapEff:\t{effective:016x}\nCapBnd:\t0\n")
    finding = doctor.check_capabilities(host)
    assert finding.state is state
    if lacking:
        assert lacking in finding.text.split("lacking")[1]
        assert "--cap-add" in (finding.remedy or "")


def test_capabilities_of_a_user_are_not_looked_at(host: Host) -> None:
    assert doctor.check_capabilities(ordinary(host)).state is State.UNKNOWN
    (host.root / "proc/self/status").unlink()
    assert doctor.check_capabilities(host).state is State.UNKNOWN


def test_pid_namespace(host: Host) -> None:
    assert doctor.check_pid_namespace(host).state is State.OK
    link = host.root / "proc/self/ns/pid"
    link.unlink()
    link.symlink_to("pid:[4026532201]")
    finding = doctor.check_pid_namespace(host)
    assert finding.state is State.MISSING
    assert "--pid=host" in (finding.remedy or "")
    link.unlink()
    assert doctor.check_pid_namespace(host).state is State.UNKNOWN


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("[none] integrity confidentiality\n", State.OK),
        ("none [integrity] confidentiality\n", State.OK),
        ("none integrity [confidentiality]\n", State.MISSING),
    ],
)
def test_lockdown(host: Host, text: str, state: State) -> None:
    write(host.root, "sys/kernel/security/lockdown", text)
    assert doctor.check_lockdown(host).state is state
    (host.root / "sys/kernel/security/lockdown").unlink()
    assert doctor.check_lockdown(host).state is State.UNKNOWN


def test_btf(host: Host) -> None:
    assert doctor.check_btf(host).state is State.OK
    (host.root / "sys/kernel/btf/vmlinux").unlink()
    finding = doctor.check_btf(host)
    assert finding.state is State.MISSING
    assert "CONFIG_DEBUG_INFO_BTF" in (finding.remedy or "")


def test_offsets_that_are_not_found(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(paths: object) -> dict[str, int]:
        raise CommandError("this kernel's BTF has no sock.sk_shutdown", ExitCode.HOST)

    monkeypatch.setattr(doctor, "member_offsets", refuse)
    finding = doctor.check_offsets(host)
    assert finding.state is State.MISSING
    assert "sock.sk_shutdown" in finding.text


def test_bcc_that_is_not_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.modules", {})
    finding = doctor.check_bcc(host)
    assert finding.state is State.MISSING
    assert finding.remedy == "apt-get install python3-bpfcc"


def test_the_impostor_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    write(host.root, "usr/lib/python3/dist-packages/bcc/__init__.py", "# body-centred cubic\n")
    finding = doctor.check_bcc(host)
    assert finding.state is State.MISSING
    assert "PyPI's unrelated `bcc`" in finding.text
    assert "pip uninstall bcc" in (finding.remedy or "")


@pytest.mark.parametrize(("answer", "state"), [(True, State.OK), (False, State.MISSING), (None, State.UNKNOWN)])
def test_ring_buffer(host: Host, monkeypatch: pytest.MonkeyPatch, answer: bool | None, state: State) -> None:
    monkeypatch.setattr(features, "has_ring_buffer", lambda: answer)
    assert doctor.check_ring_buffer(host).state is state


@pytest.mark.parametrize(("answer", "state"), [(True, State.OK), (False, State.WARNING), (None, State.UNKNOWN)])
def test_uprobe_multi(host: Host, monkeypatch: pytest.MonkeyPatch, answer: bool | None, state: State) -> None:
    monkeypatch.setattr(features, "has_uprobe_multi", lambda: answer)
    assert doctor.check_uprobe_multi(host).state is state


@pytest.mark.parametrize(
    ("events", "cookies", "text", "cost"),
    [
        (True, True, "by perf events with cookies", "CAP_SYS_ADMIN"),
        (True, False, "by perf events, with a program each", "CAP_SYS_ADMIN"),
        (False, False, "no perf events for uprobes either", "TLS is not read"),
        (None, True, "perf events are not allowed to this user", "TLS is not read"),
    ],
)
def test_without_uprobe_multi(
    host: Host, monkeypatch: pytest.MonkeyPatch, events: bool | None, cookies: bool, text: str, cost: str
) -> None:
    monkeypatch.setattr(features, "has_uprobe_multi", lambda: False)
    monkeypatch.setattr(features, "has_uprobe_events", lambda: events)
    monkeypatch.setattr(features, "has_cookies", lambda: cookies)
    finding = doctor.check_uprobe_multi(host)
    assert finding.state is State.WARNING
    assert text in finding.text
    assert cost in (finding.cost or "")


OPENSSL = Analysis("", (ProbeFinding(Library.OPENSSL, "3.0.17", (Probe(1, Purpose.FREE), Probe(2, Purpose.FREE))),))
STRIPPED = Analysis("", (ProbeFinding(Library.BORINGSSL, problem="no names"),))


def test_tls_libraries(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_tls_libraries(host).text == "none in the linker's cache"
    write(host.root, "usr/lib/libssl.so.3", "x")
    write(host.root, "usr/lib/libgnutls.so.30", "y")
    path = f"{host.root}/usr/lib/libssl.so.3"
    found = {path: OPENSSL, f"{host.root}/usr/lib/libgnutls.so.30": Analysis()}
    monkeypatch.setattr(doctor, "analyse", lambda path: found[path])
    finding = doctor.check_tls_libraries(host)
    assert (finding.state, finding.text) == (State.OK, f"OpenSSL 3.0.17 ({path}, 2 probes)")
    for analysis, reason in ((STRIPPED, "no names"), (Analysis(problem="damaged"), "damaged")):
        found[path] = analysis
        finding = doctor.check_tls_libraries(host)
        assert finding.state is State.WARNING
        assert f"cannot be read: {'BoringSSL (' if analysis is STRIPPED else ''}{path}" in finding.text
        assert finding.text.endswith(reason)
        assert finding.cost
    assert doctor.check_tls_libraries(replace(host, machine="aarch64")).state is State.UNKNOWN


def add_mapping(host: Host, pid: int, inode: int, path: str) -> None:
    start = inode << 12
    maps = host.root / f"proc/{pid}/maps"
    maps.parent.mkdir(parents=True, exist_ok=True)
    with maps.open("a") as file:
        file.write(f"{start:x}-{start + 4096:x} r-xp 00000000 08:01 {inode} {path}\n")
    content = host.root / f"content-{inode}"
    content.write_bytes(b"\x7fELF SSL_ " + path.encode())
    (maps.parent / "map_files").mkdir(exist_ok=True)
    (maps.parent / f"map_files/{start:x}-{start + 4096:x}").symlink_to(content)


def test_blind_tls(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def analyse(path: str) -> Analysis:
        text = Path(path).read_text()
        looked_at.append(text.split()[-1])
        if "libjvm" in text:
            return Analysis("", blind=("Java",))
        return STRIPPED if "envoy" in text else OPENSSL

    looked_at: list[str] = []
    monkeypatch.setattr(doctor, "analyse", analyse)
    add_mapping(host, 20, 100, "/usr/bin/curl")
    add_mapping(host, 20, 101, "/usr/lib/libssl.so.3")
    finding = doctor.check_blind_tls(host)
    assert (finding.state, "no process" in finding.text) == (State.OK, True)
    add_mapping(host, 30, 200, "/usr/bin/java")
    add_mapping(host, 30, 201, "/usr/lib/libjvm.so")
    write(host.root, "proc/30/comm", "java\n")
    (host.root / "proc/31").symlink_to(host.root / "proc/30")
    add_mapping(host, 40, 300, "/opt/envoy")
    write(host.root, "proc/40/comm", "envoy\n")
    looked_at.clear()
    finding = doctor.check_blind_tls(host)
    assert finding.state is State.WARNING
    assert finding.text == "30 (java): Java, 31 (java): Java, 40 (envoy): BoringSSL"
    assert sorted(looked_at) == sorted(set(looked_at)), "each file once"
    assert {*looked_at[:3]} == {"/usr/bin/curl", "/usr/bin/java", "/opt/envoy"}, "executables first"
    assert "explain" in (finding.remedy or "")
    monkeypatch.setattr(doctor, "BLIND_SECONDS", -1.0)
    assert doctor.check_blind_tls(host).text.endswith("5 files were not looked into within -1 s")
    assert doctor.check_blind_tls(ordinary(host)).state is State.UNKNOWN


def test_a_program_that_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(filters: object, *, cached: bool) -> None:
        assert not cached, "whether it compiles is asked"
        raise CommandError("the kernel refused it: R1 invalid", ExitCode.HOST, remedy="see `netprofiler doctor`")

    monkeypatch.setattr(doctor, "KernelSource", refuse)
    finding = doctor.check_program(host)
    assert finding.state is State.MISSING
    assert finding.text == "the kernel refused it: R1 invalid"
    assert doctor.check_program(ordinary(host)).state is State.UNKNOWN


@pytest.mark.parametrize(
    ("release", "limit", "state"),
    [
        ("5.11.0", 65536, State.OK),
        ("5.10.0", 65536, State.WARNING),
        ("5.10.0", 128 << 20, State.OK),
        ("5.10.0", resource.RLIM_INFINITY, State.OK),
    ],
)
def test_memlock(host: Host, monkeypatch: pytest.MonkeyPatch, release: str, limit: int, state: State) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert doctor.check_memlock(replace(host, release=release)).state is state


def test_io_uring(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "has_io_uring", lambda: False)
    assert "not there" in doctor.check_io_uring(host).text
    monkeypatch.setattr(features, "has_io_uring", lambda: True)
    assert "nobody does now" in doctor.check_io_uring(host).text
    assert doctor.check_io_uring(ordinary(host)).state is State.UNKNOWN
    add_process(host, 123, "tokio", "anon_inode:[io_uring]")
    finding = doctor.check_io_uring(host)
    assert finding.state is State.WARNING
    assert "123 (tokio)" in finding.text
    write(host.root, "proc/sys/kernel/io_uring_disabled", "2\n")
    assert doctor.check_io_uring(host).state is State.OK


def test_other_agents(host: Host) -> None:
    assert doctor.check_other_agents(host).state is State.OK
    add_process(host, 9, "tracer", "anon_inode:bpf_link", "link_type:\traw_tracepoint\ntp_name:\tsys_enter\n")
    assert doctor.check_other_agents(host).state is State.OK
    for pid in range(10, 17):
        add_process(host, pid, "netprofiler", "anon_inode:bpf_link", "link_type:\traw_tracepoint\ntp_name:\tsys_exit\n")
    finding = doctor.check_other_agents(host)
    assert finding.state is State.WARNING
    assert "10 (netprofiler)" in finding.text
    assert "and 2 more" in finding.text
    assert doctor.check_other_agents(ordinary(host)).state is State.UNKNOWN


def test_what_is_not_needed_is_never_missing(host: Host) -> None:
    write(host.root, "proc/self/mounts", "tracefs /sys/kernel/tracing tracefs rw 0 0\n")
    assert "/sys/kernel/tracing" in doctor.check_tracefs(host).text
    (host.root / "proc/self/mounts").unlink()
    for check in (doctor.check_tracefs, doctor.check_headers, doctor.check_kprobes):
        finding = check(host)
        assert finding.state is State.OK
        assert "not needed" in finding.text


def one(state: State, needed: bool) -> list[tuple[Check, Finding]]:
    finding = Finding(state, "found", "much", "mend it")
    return [(Check("thing", lambda _: finding, needed), finding)]


@pytest.mark.parametrize(
    ("state", "needed", "works"),
    [
        (State.OK, True, True),
        (State.WARNING, True, True),
        (State.UNKNOWN, True, True),
        (State.MISSING, True, False),
        (State.MISSING, False, True),
    ],
)
def test_only_what_is_needed_and_missing_is_in_the_way(state: State, needed: bool, works: bool) -> None:
    findings = one(state, needed)
    assert doctor.can_capture(findings) is works
    assert json.loads(doctor.as_json(findings))["can_capture"] is works
    assert ("cannot capture here: see thing" in doctor.as_text(findings)) is not works


def test_text_and_json_have_all() -> None:
    text = doctor.as_text(one(State.MISSING, needed=True))
    assert "missing" in text and "costs: much" in text and "to mend it: mend it" in text
    assert "to look: mend it" in doctor.as_text(one(State.UNKNOWN, needed=True))
    (entry,) = json.loads(doctor.as_json(one(State.WARNING, needed=False)))["checks"]
    assert entry == {
        "name": "thing",
        "state": "warning",
        "needed": False,
        "text": "found",
        "cost": "much",
        "remedy": "mend it",
    }


def test_names_are_unique() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


@pytest.mark.loads_bcc
def test_without_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs to its end, and says what it could not look at."""
    monkeypatch.setattr(doctor, "Host", lambda: Host(user=1000))
    monkeypatch.setattr(Host, "capabilities", 0)
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "not looked at" in out
    assert "run netprofiler with sudo" in out


def bpf_descriptors() -> list[str]:
    directory = Path("/proc/self/fd")
    names = []
    for entry in directory.iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # the descriptor of this very listing
            continue
        if "bpf" in target:
            names.append(target)
    return sorted(names)


@pytest.mark.kernel
@pytest.mark.loads_bcc
def test_here_as_root(capsys: pytest.CaptureFixture[str]) -> None:
    """Loading leaves nothing behind."""
    before = bpf_descriptors()
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    states = {entry["name"]: entry["state"] for entry in document["checks"]}
    assert states["program"] == "ok"
    assert states["struct offsets"] == "ok"
    libraries = next(entry["text"] for entry in document["checks"] if entry["name"] == "TLS libraries")
    assert re.search(r"OpenSSL \d+\.\d+\.\d+\w* \(/\S+/libssl\.so[.0-9]*, \d+ probes\)", libraries)
    assert document["can_capture"] is True
    assert bpf_descriptors() == before
