"""netprofiler.sources.bcc_import, on directory trees made up here."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netprofiler.errors import CommandError
from netprofiler.sources import bcc_import
from netprofiler.sources.bcc_import import find_bcc, is_bcc, load_bcc

DEBIAN = "usr/lib/python3/dist-packages"


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees, or leaves behind, a module named bcc; none finds a bcc of this machine."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "bcc"}
    for name in before:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "bcc").exists()])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "bcc"]:
        del sys.modules[name]
    sys.modules.update(before)


def real(directory: Path, *, init: str = "") -> Path:
    """Something shaped like BCC, with its warnings and its habit of importing itself."""
    package = directory / "bcc"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import re\nfrom .libbcc import lib\nfrom .table import Table\n"
        + (init or "PATTERN = '\\.'\n")
        + "\nclass BPF(object):\n    lib = lib\n"
    )
    (package / "libbcc.py").write_text("lib = 'libbcc.so.0'\n")
    (package / "table.py").write_text("from .libbcc import lib\nclass Table: pass\n")
    return package


def lattice(directory: Path) -> Path:
    """PyPI's bcc 0.1.10 has these two files."""
    package = directory / "bcc"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('an unknown package was run')\n")
    (package / "bcc.py").write_text("class Lattice: pass\n")
    return package


@pytest.mark.parametrize(
    "directory",
    [
        "usr/lib/python3/dist-packages",
        "usr/lib/python3.12/site-packages",
        "usr/lib64/python3.13/site-packages",
        "usr/local/lib/python3.11/dist-packages",
    ],
)
def test_found_where_distributions_keep_it(tmp_path: Path, directory: str) -> None:
    package = real(tmp_path / directory)
    assert find_bcc(tmp_path, []) == bcc_import.Found(package, None)


def test_found_on_the_search_path_when_nowhere_else(tmp_path: Path) -> None:
    package = real(tmp_path / "opt/bcc-build")
    assert find_bcc(tmp_path, ["", str(tmp_path / "opt/bcc-build")]).package == package


def test_loaded_without_touching_the_search_path(tmp_path: Path) -> None:
    package = real(tmp_path / DEBIAN)
    (tmp_path / DEBIAN / "h11.py").write_text("raise AssertionError('shadows ours')\n")
    before = list(sys.path)
    bcc = load_bcc(tmp_path)
    assert sys.path == before
    assert bcc.BPF.lib == "libbcc.so.0"
    assert bcc.__file__ == str(package / "__init__.py")
    assert sys.modules["bcc"] is bcc
    assert sys.modules["bcc.table"].lib == "libbcc.so.0"
    assert load_bcc(tmp_path) is bcc


def test_no_bytecode_is_left_with_the_package_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    package = real(tmp_path / DEBIAN)
    load_bcc(tmp_path)
    assert not (package / "__pycache__").exists()
    assert not sys.dont_write_bytecode


def test_its_syntax_warnings_are_not_ours(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    real(tmp_path / DEBIAN)
    load_bcc(tmp_path)
    assert not recwarn.list


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(CommandError) as raised:
        load_bcc(tmp_path)
    assert raised.value.exit_code == 3
    assert "apt-get install python3-bpfcc" in str(raised.value)


def test_the_lattice_library_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = lattice(tmp_path / "venv")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "venv")])
    with pytest.raises(CommandError) as raised:
        load_bcc(tmp_path)
    assert raised.value.exit_code == 3
    assert f"found at {package} is PyPI's unrelated `bcc`" in str(raised.value)
    assert raised.value.remedy == "pip uninstall bcc; apt-get install python3-bpfcc"
    assert "bcc" not in sys.modules


def test_a_single_module_of_that_name_is_not_it_either(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("")
    with pytest.raises(CommandError, match=r"bcc\.py is PyPI's unrelated"):
        find_bcc(tmp_path / "root", [str(tmp_path)])


def test_the_distributions_wins_over_the_lattice_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = real(tmp_path / DEBIAN)
    impostor = lattice(tmp_path / "venv")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "venv"), *sys.path])
    with caplog.at_level(logging.WARNING):
        bcc = load_bcc(tmp_path)
    assert bcc.__file__ == str(package / "__init__.py")
    assert f"ignoring PyPI's unrelated package `bcc` at {impostor}" in caplog.text


def test_an_impostor_that_was_imported_already_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "venv/bcc").mkdir(parents=True)
    (tmp_path / "venv/bcc/__init__.py").write_text("from . import libbcc\n")
    (tmp_path / "venv/bcc/libbcc.py").write_text("lib = 'impostor'\n")
    # Not syspath_prepend: its undoing would put back the path as the fixture above left it, not as it was before.
    monkeypatch.setattr(sys, "path", [str(tmp_path / "venv"), *sys.path])
    importlib.invalidate_caches()
    importlib.import_module("bcc")
    real(tmp_path / DEBIAN)
    assert load_bcc(tmp_path).BPF.lib == "libbcc.so.0"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise OSError('libbcc.so.0: cannot open shared object file')", "OSError: libbcc.so.0: cannot open"),
        ("raise AttributeError('undefined symbol: bpf_new_ringbuf')", "undefined symbol"),
        ("import a_module_that_nobody_has", "No module named 'a_module_that_nobody_has'"),
    ],
)
def test_a_broken_installation(tmp_path: Path, line: str, said: str) -> None:
    package = real(tmp_path / DEBIAN, init=line + "\n")
    with pytest.raises(CommandError) as raised:
        load_bcc(tmp_path)
    assert raised.value.exit_code == 3
    assert f"{package} does not load" in str(raised.value)
    assert said in str(raised.value)
    assert not [name for name in sys.modules if name.split(".")[0] == "bcc"]


def test_the_real_one_of_this_machine_is_recognised() -> None:
    package = Path("/usr/lib/python3/dist-packages/bcc")
    if not package.exists():
        pytest.skip("python3-bpfcc is not installed here")
    assert is_bcc(package)
