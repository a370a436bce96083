"""Whatever the traffic, each line is JSON that the schema allows, with its keys in the order of docs/record.md."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

import netprofiler
from netprofiler import wire
from netprofiler.redaction import Redactor
from netprofiler.sinks.jsonlines import RecordWriter
from netprofiler.testing import Played, Script, split
from tests.property.test_hostile import JUNK
from tests.property.test_streams_of_messages import mutations
from tests.property.traffic import Truth, exchanges, peer_of, perform, schedules
from tests.unit.sinks.test_jsonlines import KEYS

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(netprofiler.__file__).parent / "record.schema.json").read_text(encoding="utf-8"))
)
FAMILIES = st.sampled_from([wire.FAMILY_IPV4, wire.FAMILY_UNIX])


def check_lines(played: Played, limit: int, raw: bool) -> None:
    writer = RecordWriter(Redactor(), wall_offset_ns=1 << 60, body_limit=limit, raw_payload=raw)
    for message in played.messages:
        line = writer.render(message)
        assert "\n" not in line
        record = json.loads(line)
        assert list(record) == [key for key in KEYS if key in record]
        SCHEMA.validate(record)
        assert record["bytes"] == message.stream_bytes >= message.head.size
        assert record["body_bytes"] == message.body_bytes


@given(exchanges(at_most=3), st.data(), FAMILIES, st.sampled_from([0, 5, 4096]), st.booleans())
def test_records_of_traffic(truths: list[Truth], data: st.DataObject, family: int, limit: int, raw: bool) -> None:
    script = Script()
    script.process()
    role = data.draw(st.sampled_from([wire.ROLE_CLIENT, wire.ROLE_SERVER]))
    perform(data.draw(schedules(truths)), peer_of(script, role, family))
    steps = data.draw(mutations(script.steps, keep=2)) if data.draw(st.booleans()) else script.steps
    check_lines(script.play(steps, body_limit=limit), limit, raw)


@given(JUNK, JUNK, st.lists(st.integers(0, 400), max_size=6), FAMILIES, st.sampled_from([0, 5, 4096]), st.booleans())
def test_records_of_anything(sent: bytes, received: bytes, cuts: list[int], family: int, limit: int, raw: bool) -> None:
    script = Script()
    peer = peer_of(script, 0, family, fresh=raw)
    peer.send(*split(sent, cuts))
    script.wait(6)
    peer.recv(*split(received, cuts))
    script.wait(6)
    check_lines(script.play(body_limit=limit), limit, raw)
