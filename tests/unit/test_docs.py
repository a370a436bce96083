"""The documents say what the code does: links lead somewhere, tables are those of the code, examples are records."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from netprofiler import redaction
from netprofiler.cli import VERBS
from netprofiler.config import OPTIONS, add_options
from netprofiler.counters import LEDGER_ROWS, Counters, make_ledger
from netprofiler.sources import kernel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md")))
SCHEMA = ROOT / "netprofiler" / "record.schema.json"
NAMES = [f"--{option.name}" for option in OPTIONS]


def page(name: str) -> str:
    return (DOCS / name).read_text()


def section(text: str, heading: str) -> str:
    """From a heading to the next one of its level or above."""
    level = heading.split(" ", maxsplit=1)[0]
    _, _, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert rest, f"no {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> Iterator[list[str]]:
    """Rows of the tables in a text."""
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|- :"):
            yield [cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")]


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text()), f"{path.name}: {target}"


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in DOCS.glob("*.md"):
        assert f"docs/{path.name}" in readme, path.name


def test_files_that_the_code_refers_to_are_there() -> None:
    for path in (*ROOT.glob("netprofiler/**/*.py"), *ROOT.glob("bpf/**/*.h")):
        for name in re.findall(r"\bdocs/[\w.]+\.md\b", path.read_text()):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


# --- options ----------------------------------------------------------------------------------------------------------


def documented_options() -> dict[str, list[str]]:
    table = section(page("cli.md"), "## Options of `run`, `record` and `replay`")
    found = {}
    for cells in rows(table):
        match = re.match(r"(?:`(-\w)`, )?`(--[a-z-]+)", cells[0])
        if match:
            found[match[2]] = [match[1] or "", cells[0], cells[-1]]
    return found


def test_every_option_is_in_the_table_and_none_else() -> None:
    assert list(documented_options()) == [*NAMES, "--config"]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_an_option_is_documented_as_it_is(option: Any) -> None:
    short, names, others = documented_options()[f"--{option.name}"]
    assert short == (f"-{option.short}" if option.short else "")
    assert names.endswith(f"--{option.name} {option.placeholder}`" if option.convert else f"--{option.name}`")
    for verb, capture, outputs in (("record", True, False), ("replay", False, True)):
        parser = argparse.ArgumentParser()
        add_options(parser, capture=capture, outputs=outputs)
        known = any(f"--{option.name}" in action.option_strings for action in parser._actions)
        assert (verb in others.split(", ")) is known, verb


def test_the_readme_has_no_option_that_is_none() -> None:
    table = section((ROOT / "README.md").read_text(), "## Options")
    for name in re.findall(r"`(?:-\w`, `)?(--[a-z][a-z-]*[a-z])[ `]", table):
        assert name in (*NAMES, "--config", "--help"), name


@pytest.mark.parametrize("name", [*NAMES, "--config"])
def test_every_option_is_in_the_man_page_and_the_completion(name: str) -> None:
    assert f"\\fB{name.replace('-', chr(92) + '-')}\\fP" in page("netprofiler.1")
    assert re.search(rf'run\) options="[^"]*{name}[ "]', page("netprofiler.bash"))


def test_every_verb_is_in_the_documents() -> None:
    for name in ("cli.md", "netprofiler.1", "netprofiler.bash"):
        for verb in VERBS:
            assert verb in page(name), (name, verb)
    verbs = [re.sub(r"`([a-z]+).*", r"\1", cells[0]) for cells in rows(page("cli.md")) if len(cells) == 3]
    assert [verb for verb in verbs if verb in VERBS] == list(VERBS)


def test_the_written_files_are_up_to_date() -> None:
    manual = runpy.run_path(str(ROOT / "scripts" / "manual.py"))
    remedy = "run .venv/bin/python scripts/manual.py"
    assert page("netprofiler.1") == manual["man_page"](), remedy
    assert page("netprofiler.bash") == manual["completion"](), remedy


def complete(*words: str) -> list[str]:
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _netprofiler; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(DOCS / "netprofiler.bash"), "netprofiler", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
        cwd=DOCS,
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_completion_completes() -> None:
    assert complete("do") == ["doctor"]
    assert complete("--exclude-p") == ["--exclude-pid", "--exclude-port"]
    assert complete("doctor", "--") == ["--json", "--help"]
    assert complete("explain", "--s") == ["--seconds"]
    assert complete("--config", "netprofiler.b") == ["netprofiler.bash"]
    assert complete("--pid", "") == []


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_the_man_page_is_well_formed() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-z", str(DOCS / "netprofiler.1")],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    assert done.returncode == 0
    assert done.stderr == ""


# --- ledger, bounds, redaction ----------------------------------------------------------------------------------------


def names_in(heading: str) -> list[str]:
    return [
        match[1] for cells in rows(section(page("ledger.md"), heading)) if (match := re.match(r"`(\w+)`", cells[0]))
    ]


def test_the_ledgers_rows() -> None:
    assert names_in("## Rows of `bytes` and `calls`") == list(LEDGER_ROWS)
    records = make_ledger(Counters(), None)["records"]
    assert isinstance(records, dict)
    assert names_in("## Rows of `records`") == list(records["rows"])


def test_rows_named_in_missing_md_exist() -> None:
    table = section(page("missing.md"), "## One process, or one kind of traffic, is missing")
    named = {name for cells in rows(table) for name in re.findall(r"`(\w+)`", cells[0])}
    assert named == set(LEDGER_ROWS) - {"recorded", "pending"}


def bounds() -> list[tuple[str, int]]:
    found = []
    for cells in rows(section(page("architecture.md"), "## Bounds")):
        match = re.fullmatch(r"`([\w.]+)\.([A-Z_]+)`", cells[0])
        if match:
            found.append((f"{match[1]}.{match[2]}", int(cells[1].replace(",", ""))))
    return found


@pytest.mark.parametrize(("name", "value"), bounds())
def test_a_bound_is_what_the_architecture_says(name: str, value: int) -> None:
    module, _, constant = name.rpartition(".")
    assert getattr(importlib.import_module(f"netprofiler.{module}"), constant) == value


def test_the_bounds_are_there() -> None:
    assert len(bounds()) > 20


@pytest.mark.parametrize("name", ["PIECE_BYTES", "CALL_COPY_BYTES", "TAIL_BYTES", "STEPS", "CHAIN_MAX", "PREFIX_BYTES"])
def test_bounds_of_the_kernel_side(name: str) -> None:
    headers = "".join(path.read_text() for path in (ROOT / "bpf").glob("*.h"))
    text = section(page("architecture.md"), "## Bounds")

    def value_of(macro: str) -> int:
        match = re.search(rf"^#define {macro} \(?([\w *]+?)\)?(?: /\*.*)?$", headers, re.MULTILINE)
        assert match, macro
        product = 1
        for part in match[1].split("*"):
            product *= int(part) if part.strip().isdigit() else value_of(part.strip())
        return product

    match = re.search(rf"`{name}`\s(\d+)(?: (KiB|MiB))?", text)
    assert match
    assert int(match[1]) * {"": 1, "KiB": 1024, "MiB": 1 << 20}[match[2] or ""] == value_of(name)


def test_the_tracepoints_are_named() -> None:
    text = section(page("architecture.md"), "## The kernel side")
    for tracepoint in kernel.TRACEPOINTS | kernel.SOCKET_TRACEPOINTS | kernel.CALL_TRACEPOINTS:
        assert f"`{tracepoint.decode()}`" in text, tracepoint


def test_the_system_calls_are_named() -> None:
    """Those of bpf/arch.h, whatever their order."""
    text = section(page("architecture.md"), "## The kernel side").lower()
    for name in set(re.findall(r"#define CALL_(\w+)", (ROOT / "bpf" / "arch.h").read_text())):
        assert re.search(rf"\b{name.lower()}\b", text), name


def test_the_redacted_names() -> None:
    """Paragraphs that hold nothing but names."""
    text = page("redaction.md")
    listed = [set(re.findall(r"`([a-z -]+)`", part)) for part in re.findall(r"\n\n(`[a-z `,\n-]+`)\n\n", text)]
    assert listed == [
        set(names) for names in (redaction._HEADERS, redaction._EXACT, redaction._ENDINGS, redaction._READABLE)
    ]


# --- records ----------------------------------------------------------------------------------------------------------


def examples() -> Iterator[dict[str, Any]]:
    for path in (ROOT / "README.md", DOCS / "record.md"):
        for block in re.findall(r"```json\n(.*?)```", path.read_text(), re.DOTALL):
            decoder = json.JSONDecoder()
            rest = block.strip()
            while rest:
                record, end = decoder.raw_decode(rest)
                yield record
                rest = rest[end:].strip()


def documented_keys() -> list[str]:
    keys: list[str] = []
    for cells in rows(page("record.md").split("## ")[0]):
        keys += re.findall(r"`(\w+)`", cells[0])
    return keys


def test_examples_are_records() -> None:
    schema = json.loads(SCHEMA.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    found = list(examples())
    assert len(found) == 3
    order = documented_keys()
    for record in found:
        validator.validate(record)
        assert list(record) == sorted(record, key=order.index)


def test_the_keys_are_the_schemas() -> None:
    assert documented_keys() == list(json.loads(SCHEMA.read_text())["properties"])
