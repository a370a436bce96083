"""Finds the distribution's BCC, whichever CPython runs us.

Contract: `load_bcc()` returns the package `bcc` that belongs to the BPF Compiler Collection, or raises a `CommandError` (exit
status 3) that names the remedy. Invariant: `sys.path` is not touched. BCC comes from the distribution (`python3-bpfcc`), is pure
Python over ctypes, and so runs under any CPython >= 3.11; but the directory that it lives in is full of other distribution
packages, built for another interpreter, which must not shadow ours. Hence that one package is loaded by its path.

PyPI has a package named `bcc` too: an unrelated one, about lattices. It is recognised by what it lacks and never imported.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from netprofiler.errors import CommandError, ExitCode

_log = logging.getLogger(__name__)

INSTALL: Final = "apt-get install python3-bpfcc"
"""Debian's and Ubuntu's name of it; Fedora's is python3-bcc, Arch's python-bcc."""

_PATTERNS: Final = (
    "usr/lib/python3/dist-packages",  # Debian, Ubuntu
    "usr/lib/python3*/dist-packages",
    "usr/lib/python3*/site-packages",  # Fedora, openSUSE, Arch, Alpine
    "usr/lib64/python3*/site-packages",
    "usr/local/lib/python3*/dist-packages",  # built from source, installed by cmake
    "usr/local/lib/python3*/site-packages",
)
"""Where distributions keep their Python packages, best first."""

_REAL_FILES: Final = ("__init__.py", "libbcc.py", "table.py")
"""Files that every version of BCC since 2015 has, and PyPI's `bcc` has not."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where BCC is."""

    package: Path
    """The directory `bcc` of the BPF Compiler Collection."""
    impostor: Path | None
    """PyPI's unrelated `bcc`, where that is installed as well: `import bcc` would have got it."""


def load_bcc(root: Path = Path("/")) -> ModuleType:
    """The distribution's `bcc`, imported once and from then on in `sys.modules` (it imports itself by that name)."""
    loaded = sys.modules.get("bcc")
    if loaded is not None and hasattr(loaded, "BPF"):
        return loaded
    found = find_bcc(root, sys.path)
    if found.impostor is not None:
        _log.warning(
            "ignoring PyPI's unrelated package `bcc` at %s (pip uninstall bcc); using %s", found.impostor, found.package
        )
    return _load(found.package)


def find_bcc(root: Path, search_path: Iterable[str]) -> Found:
    """Looks in the distribution's directories under `root`, then in `search_path`; imports nothing."""
    impostor: Path | None = None
    real: Path | None = None
    for package in _candidates(root, search_path):
        if not is_bcc(package):
            impostor = impostor or package
        elif real is None:
            real = package
    if real is not None:
        return Found(real, impostor)
    if impostor is not None:
        raise CommandError(
            f"the Python package found at {impostor} is PyPI's unrelated `bcc`, not the BPF Compiler Collection",
            ExitCode.HOST,
            remedy=f"pip uninstall bcc; {INSTALL}",
        )
    raise CommandError("BCC, the BPF Compiler Collection, is not installed", ExitCode.HOST, remedy=INSTALL)


def is_bcc(package: Path) -> bool:
    """Whether this directory is the real thing. Reads, does not run: an unknown package's code is not ours to execute as root."""
    if not all((package / name).is_file() for name in _REAL_FILES):
        return False
    return b"\nclass BPF(" in (package / "__init__.py").read_bytes()


def _candidates(root: Path, search_path: Iterable[str]) -> Iterator[Path]:
    """Every package or module that `bcc` could mean, once, the distribution's first."""
    directories = [directory for pattern in _PATTERNS for directory in sorted(root.glob(pattern), reverse=True)]
    directories += [Path(entry) for entry in search_path if entry]
    seen: set[Path] = set()
    for directory in directories:
        for name in ("bcc", "bcc.py"):
            package = directory / name
            resolved = package.resolve()
            if resolved not in seen and (package.is_file() or (package / "__init__.py").is_file()):
                seen.add(resolved)
                yield package


def _load(package: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bcc", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    if spec is None or spec.loader is None:
        raise CommandError(f"the BCC package at {package} cannot be loaded", ExitCode.HOST, remedy=INSTALL)
    module = importlib.util.module_from_spec(spec)
    # An impostor that something imported before us would answer BCC's own `from .libbcc import`.
    for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
        del sys.modules[name]
    sys.modules["bcc"] = module
    # Root must not leave another CPython's bytecode in a directory that the package manager owns.
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        # BCC 0.26 has `'\.'` in its regular expressions, which CPython 3.12 and later warn of on the user's terminal.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spec.loader.exec_module(module)
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        # ctypes says OSError where libbcc.so is missing, AttributeError where it is older than its Python half.
        for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
            del sys.modules[name]
        raise CommandError(
            f"the BCC package at {package} does not load: {type(error).__name__}: {error}",
            ExitCode.HOST,
            remedy=f"{INSTALL} --reinstall",
        ) from error
    finally:
        sys.dont_write_bytecode = write_bytecode
    return module
