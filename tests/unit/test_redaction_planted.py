"""What tests/real/test_secrets.py asks of the whole agent, of pipeline and sinks alone: at each way to cut the traffic into calls."""

from __future__ import annotations

import io
import json
import time
from collections import Counter as Tally

import pytest

from netprofiler.config import BODY_LIMIT_MAX
from netprofiler.counters import Counters
from netprofiler.exchange import Message
from netprofiler.metrics.routes import authority_of, guess_route, path_of
from netprofiler.redaction import PLACEHOLDER, Redactor
from netprofiler.sinks.jsonlines import RecordWriter
from netprofiler.sinks.terminal import Terminal
from netprofiler.testing import Script
from tests.real.harness.planted import PLANTS, Plant, found_in, look_alikes, steps

REDACTOR = Redactor()
DISABLED = Redactor(enabled=False)


def messages_of(up: bytes, down: bytes, piece: int, body_limit: int = 4096) -> list[Message]:
    script = Script()
    script.process()
    peer = script.client()
    for is_up, data in steps(up, down):
        (peer.send if is_up else peer.recv)(*(data[at : at + piece] for at in range(0, len(data), piece)))
    peer.close()
    return script.play(body_limit=body_limit).messages


def lines(messages: list[Message], redactor: Redactor, body_limit: int = 4096) -> list[str]:
    writer = RecordWriter(redactor, wall_offset_ns=0, body_limit=body_limit, raw_payload=True)
    return [writer.render(message) for message in messages]


def terminal_text(messages: list[Message], redactor: Redactor) -> str:
    out = io.StringIO()
    Terminal(out, redactor, Counters(), wall_offset_ns=0, colour=False).emit(messages)
    return out.getvalue()


def test_there_are_sixty_secrets_in_twenty_forms() -> None:
    forms = Tally(plant.form for plant in PLANTS)
    assert len(PLANTS) >= 60
    assert len(forms) >= 20
    assert len({plant.secret for plant in PLANTS}) == len(PLANTS)


@pytest.mark.parametrize("piece", [1, 7, 64, 100_000])
@pytest.mark.parametrize("plant", PLANTS, ids=[f"{n}-{plant.form}" for n, plant in enumerate(PLANTS)])
def test_no_output_has_anything_of_it(plant: Plant, piece: int) -> None:
    messages = messages_of(plant.up, plant.down, piece)
    log = lines(messages, REDACTOR)
    assert not found_in((plant,), "\n".join(log))
    assert not found_in((plant,), terminal_text(messages, REDACTOR))
    records = [json.loads(line) for line in log]
    names = {name for record in records for name in record.get("redacted", ())}
    assert set(plant.names) <= names
    for record in records:
        if "redacted" in record and "raw_payload" in record:
            assert PLACEHOLDER in record["raw_payload"]


@pytest.mark.parametrize(
    "plant", [plant for plant in PLANTS if plant.form != "cut by the limit"], ids=lambda plant: plant.form
)
def test_without_redaction_all_would_be_seen(plant: Plant) -> None:
    messages = messages_of(plant.up, plant.down, 100_000)
    assert found_in((plant,), "\n".join(lines(messages, DISABLED)))


def test_no_label_of_the_metrics_has_anything_of_it() -> None:
    for plant in PLANTS:
        target = plant.up.split(b" ", 2)[1].decode("latin-1")
        assert not found_in((plant,), guess_route(path_of(target)) + authority_of(target))


@pytest.mark.parametrize("limit", range(0, 120, 7))
def test_a_body_that_is_cut_shows_no_half_of_it(limit: int) -> None:
    for plant in PLANTS:
        if plant.form in ("cut by the limit", "gRPC"):
            continue
        messages = messages_of(plant.up, plant.down, 100_000, limit)
        assert not found_in((plant,), "\n".join(lines(messages, REDACTOR, limit)))


@pytest.mark.parametrize(
    ("text", "up", "down"), tuple(look_alikes()), ids=lambda value: value[:30] if isinstance(value, str) else ""
)
def test_look_alikes_stay_readable(text: str, up: bytes, down: bytes) -> None:
    records = [json.loads(line) for line in lines(messages_of(up, down, 100_000), REDACTOR)]
    assert not [record["redacted"] for record in records if "redacted" in record]
    assert any(text in record["raw_payload"] for record in records)


def test_the_rest_of_a_message_stays_what_it_was() -> None:
    body = b'{"user":"reader","password":"hunter2","n":[1,2,{"card":4111111111111111}],"token":{"a":1},"ok":true}'
    [request, _] = lines(
        messages_of(
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
            b"HTTP/1.1 204 No Content\r\n\r\n",
            9,
        ),
        REDACTOR,
    )
    record = json.loads(request)
    assert json.loads(record["body"]) == {
        "user": "reader",
        "password": PLACEHOLDER,
        "n": [1, 2, {"card": PLACEHOLDER}],
        "token": PLACEHOLDER,
        "ok": True,
    }
    assert record["body_bytes"] == len(body)
    assert record["redacted"] == ["password", "card", "token"]
    assert record["raw_payload"].endswith("\r\n\r\n" + record["body"])


def test_the_command_line_of_a_process_is_no_way_out() -> None:
    text = (
        "curl -u reader:Pw-1 --password Pw-2 --api-key=Pw-3 -H Authorization: Basic Pw-4 -H Cookie: a=Pw-5; b=Pw-6 -H X-A: b "
        'http://h/?token=Pw-7 -d {"secret":"Pw-8"} -d user=a&password=Pw-9 --max-tokens 5 --key-file /etc/k'
    )
    shown, hit = REDACTOR.command_line(text)
    assert hit
    assert "Pw-" not in shown
    for kept in (
        "-u reader:",
        "-H X-A: b",
        "http://h/?token=",
        "-d user=a&password=",
        "--max-tokens 5",
        "--key-file /etc/k",
    ):
        assert kept in shown
    assert DISABLED.command_line(text) == (text, False)


def test_time_is_linear_in_the_text_whatever_it_is() -> None:
    for unit in (
        '"token":',
        "token=",
        '\\"',
        '{"key":[',
        "<key>",
        "password: ",
        "%25",
        "4111 ",
        "eyJaaaaa.",
        "Bearer ",
        "a:",
        "'",
        "form-data; name=",
        "://a:",
    ):
        took = []
        for size in (20_000, 80_000):
            text = (unit * (size // len(unit) + 1))[:size]
            start = time.process_time()
            REDACTOR.text(text, cut=True)
            took.append(time.process_time() - start)
        assert took[1] < 12 * took[0] + 0.05, (unit, took)
    assert BODY_LIMIT_MAX == 16 * 1024 * 1024
