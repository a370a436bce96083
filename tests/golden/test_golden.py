"""Each situation's recording gives the lines beside it, byte for byte; `make golden` writes them anew and shows the diff.

situations.py has the scripts of the synthetic ones. `live.recording` and `live.pcap` were taken at the same time on one
machine: curl (two requests on one connection, and a POST) and a server in Python.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jsonschema
import pytest

import netprofiler
from netprofiler.cli import main
from netprofiler.counters import LEDGER_ROWS
from tests.golden.situations import SITUATIONS, make_recording

GOLDEN = Path(__file__).parent
CAPTURES = sorted((*GOLDEN.glob("*.recording"), *GOLDEN.glob("*.pcap")))
PACKAGE = Path(netprofiler.__file__).parent


def expected_path(capture: Path) -> Path:
    return capture.with_name(f"{capture.name}.jsonl")


def replayed(capture: Path) -> tuple[str, dict[str, Any]]:
    """Lines and ledger of a replay."""
    with TemporaryDirectory() as directory:
        output, ledger = Path(directory) / "out", Path(directory) / "ledger"
        assert main(["replay", str(capture), "--output", str(output), "--ledger", str(ledger)]) == 0
        return output.read_text(), json.loads(ledger.read_text())


@cache
def schema(name: str) -> dict[str, Any]:
    loaded = json.loads((PACKAGE / f"{name}.schema.json").read_text())
    assert isinstance(loaded, dict)
    return loaded


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    return jsonschema.Draft202012Validator(schema(name), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / name).read_text().splitlines()]


@pytest.fixture(params=CAPTURES, ids=lambda path: path.name)
def capture(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def test_every_situation_has_its_files() -> None:
    assert {path.stem for path in GOLDEN.glob("*.recording")} == {*SITUATIONS, "live"}


def test_replay_gives_the_lines(capture: Path) -> None:
    text, _ = replayed(capture)
    assert text == expected_path(capture).read_text()
    assert text == replayed(capture)[0]


def test_each_line_fits_the_schema(capture: Path) -> None:
    properties = list(schema("record")["properties"])
    for record in lines(expected_path(capture).name):
        validator("record").validate(record)
        assert list(record) == sorted(record, key=properties.index), "the order of the keys"


def test_ledger_is_whole(capture: Path) -> None:
    text, ledger = replayed(capture)
    validator("ledger").validate(ledger)
    for unit in ("bytes", "calls"):
        rows = ledger[unit]["rows"]
        assert list(rows) == list(LEDGER_ROWS)
        assert sum(rows.values()) == ledger[unit]["total"] > 0
        assert rows["pending"] == rows["lost"] == 0
    assert sum(ledger["records"]["rows"].values()) == ledger["records"]["made"]
    assert ledger["records"]["rows"]["written"] == len(text.splitlines())


@pytest.mark.parametrize("name", SITUATIONS)
def test_recording_is_what_its_script_says(name: str) -> None:
    """Where this fails, the format has changed: an old recording has to be readable still, or refused."""
    assert (GOLDEN / f"{name}.recording").read_bytes() == make_recording(SITUATIONS[name])


def test_packet_capture_gives_the_exchanges_of_the_recording() -> None:
    """Taken at the same time: the same hops, and what each message says."""
    from_outside = {record["hop"]: record for record in lines("live.pcap.jsonl")}
    from_inside = lines("live.recording.jsonl")
    assert len(from_outside) == 6
    assert {record["hop"] for record in from_inside} == from_outside.keys()
    assert len(from_inside) == 2 * len(from_outside)
    only_inside = {"pid", "tid", "comm", "cmdline", "direction", "role"}
    own = {"timestamp", "connection", "exchange", "ttfb_ms", "duration_ms"}
    for record in from_inside:
        other = from_outside[record["hop"]]
        assert record.keys() - other.keys() == only_inside
        assert {key: value for key, value in record.items() if key not in own | only_inside} == {
            key: value for key, value in other.items() if key not in own
        }


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pid": None}, "None"),
        ({"unknown": 1}, "Additional"),
        ({"status_code": 200}, "valid"),
        ({"completeness": "gap"}, "missing_bytes"),
        ({"body": ""}, "non-empty"),
        ({"source_ip": "localhost"}, "valid"),
    ],
)
def test_schema_refuses(change: dict[str, Any], word: str) -> None:
    record = lines("keep_alive.recording.jsonl")[0]
    with pytest.raises(jsonschema.ValidationError, match=word):
        validator("record").validate({**record, **change})
