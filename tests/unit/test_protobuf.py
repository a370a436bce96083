"""netprofiler.protobuf: gRPC bodies as JSON, by descriptor sets; and what is none of both."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2, duration_pb2, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from netprofiler import protobuf
from netprofiler.commands.outputs import Outputs
from netprofiler.config import Config
from netprofiler.counters import Counters
from netprofiler.errors import CommandError
from netprofiler.exchange import Completeness, Grpc, Message
from netprofiler.protobuf import TEXT_GROWTH_MAX, Decoded, Descriptors
from netprofiler.redaction import Redactor
from netprofiler.sinks.jsonlines import RecordWriter
from tests.unit.sinks.messages import grpc
from tests.unit.sinks.test_protocols import SCHEMA

F = FieldDescriptorProto
IMPORTED = (any_pb2, struct_pb2, timestamp_pb2, duration_pb2)
METHODS = {"Get": (False, False), "List": (False, True), "Put": (True, False), "Chat": (True, True)}
LIMIT = 4096


def field(name: str, number: int, kind: Any, type_name: str = "", *, repeated: bool = False) -> FieldDescriptorProto:
    label = F.LABEL_REPEATED if repeated else F.LABEL_OPTIONAL
    return F(name=name, number=number, type=kind, type_name=type_name or None, label=label)


def shop(package: str = "shop", *, syntax: str = "proto3") -> FileDescriptorProto:
    """What protoc makes of shop.proto."""
    made = FileDescriptorProto(name="shop.proto", package=package, syntax=syntax)
    made.dependency.extend(module.DESCRIPTOR.name for module in IMPORTED)
    kind = made.enum_type.add(name="Kind")
    kind.value.add(name="KIND_WITHOUT_ANY_SPECIFICATION_OF_WHAT_IT_MAY_BE_IN_THE_END", number=0)
    order = made.message_type.add(name="Order")
    order.field.extend(
        (
            field("id", 1, F.TYPE_STRING),
            field("access_token", 2, F.TYPE_STRING),
            field("total_cents", 3, F.TYPE_INT64),
            field("parts", 4, F.TYPE_MESSAGE, f".{package}.Order", repeated=True),
            field("labels", 5, F.TYPE_MESSAGE, f".{package}.Order.LabelsEntry", repeated=True),
            field("at", 6, F.TYPE_MESSAGE, ".google.protobuf.Timestamp"),
            field("more", 7, F.TYPE_MESSAGE, ".google.protobuf.Any"),
            field("free", 8, F.TYPE_MESSAGE, ".google.protobuf.Struct"),
            field("kinds", 9, F.TYPE_ENUM, f".{package}.Kind", repeated=True),
            field("data", 10, F.TYPE_BYTES),
            field("took", 11, F.TYPE_MESSAGE, ".google.protobuf.Duration"),
            field("weight", 12, F.TYPE_DOUBLE),
        )
    )
    if syntax == "proto3":
        entry = DescriptorProto(name="LabelsEntry")
        entry.field.extend((field("key", 1, F.TYPE_STRING), field("value", 2, F.TYPE_STRING)))
        entry.options.map_entry = True
        order.nested_type.append(entry)
    else:
        del order.field[4]
    service = made.service.add(name="Orders")
    for name, (asks, answers) in METHODS.items():
        service.method.add(
            name=name,
            input_type=f".{package}.Order",
            output_type=f".{package}.Order",
            client_streaming=asks,
            server_streaming=answers,
        )
    return made


def descriptor_set(*files: FileDescriptorProto, imports: bool = True, after: bool = False) -> bytes:
    made = FileDescriptorSet()
    imported = []
    for module in IMPORTED if imports else ():
        copy = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(copy)
        imported.append(copy)
    made.file.extend([*files, *imported] if after else [*imported, *files])
    return made.SerializeToString()


def write(tmp_path: Path, data: bytes, name: str = "shop.bin") -> str:
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> Descriptors:
    directory = tmp_path_factory.mktemp("proto")
    older = shop("old", syntax="proto2")
    return Descriptors(
        [write(directory, descriptor_set(shop())), write(directory, descriptor_set(older), "old.bin")], Redactor()
    )


def order_class() -> type[ProtobufMessage]:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(descriptor_set(shop())).file:
        pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("shop.Order"))


ORDER = order_class()


def order(**values: Any) -> bytes:
    """A `shop.Order`; values that are messages are of another pool than it."""
    made = ORDER()
    for name, value in values.items():
        if isinstance(value, ProtobufMessage):
            getattr(made, name).MergeFromString(value.SerializeToString())
            getattr(made, name).SetInParent()
        else:
            made.MergeFrom(ORDER(**{name: value}))
    return made.SerializeToString()


def prefixed(payload: bytes, compressed: int = 0) -> bytes:
    return bytes((compressed,)) + len(payload).to_bytes(4, "big") + payload


def decode(
    descriptors: Descriptors,
    body: bytes,
    method: str = "Get",
    *,
    service: str = "shop.Orders",
    encoding: str = "",
    is_request: bool = True,
    cut: bool = False,
    limit: int = LIMIT,
) -> Decoded | None:
    about = Grpc(service, method, encoding=encoding)
    return descriptors.decode(about, body, is_request=is_request, cut=cut, limit=limit)


def shown(descriptors: Descriptors, body: bytes, method: str = "Get", **more: Any) -> Any:
    decoded = decode(descriptors, body, method, **more)
    assert decoded is not None
    return json.loads(decoded.text)


# --- messages -----------------------------------------------------------------------------------------------------


def test_one_message_is_an_object(descriptors: Descriptors) -> None:
    body = prefixed(
        order(
            id="a€",
            total_cents=1 << 60,
            parts=[{"id": "b"}, {}],
            labels={"colour": "red"},
            at=timestamp_pb2.Timestamp(seconds=1, nanos=5_000_000),
            kinds=[0, 7],
            data=b"\xff",
        )
    )
    assert decode(descriptors, body) == Decoded(
        '{"id":"a€","totalCents":"1152921504606846976","parts":[{"id":"b"},{}],"labels":{"colour":"red"},'
        '"at":"1970-01-01T00:00:01.005Z",'
        '"kinds":["KIND_WITHOUT_ANY_SPECIFICATION_OF_WHAT_IT_MAY_BE_IN_THE_END",7],"data":"/w=="}',
        True,
        (),
    )
    assert shown(descriptors, prefixed(b"")) == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_request", [True, False])
def test_a_streaming_side_is_an_array(descriptors: Descriptors, method: str, is_request: bool) -> None:
    is_stream = METHODS[method][not is_request]
    one, two = prefixed(order(id="a")), prefixed(order(id="a")) + prefixed(order(id="b"))
    expected = [{"id": "a"}] if is_stream else {"id": "a"}
    assert shown(descriptors, one, method, is_request=is_request) == expected
    if is_stream:
        assert shown(descriptors, two, method, is_request=is_request) == [{"id": "a"}, {"id": "b"}]
    else:
        assert decode(descriptors, two, method, is_request=is_request) is None


def test_an_any_that_is_known_and_one_that_is_not(descriptors: Descriptors) -> None:
    packed = any_pb2.Any(type_url="type.googleapis.com/shop.Order", value=order(id="in"))
    assert shown(descriptors, prefixed(order(more=packed))) == {
        "more": {"@type": "type.googleapis.com/shop.Order", "id": "in"}
    }
    packed.type_url = "type.googleapis.com/other.Thing"
    assert decode(descriptors, prefixed(order(more=packed))) is None


@pytest.mark.parametrize("kept", range(1, 40))
def test_of_a_stream_that_was_cut_the_whole_messages_are_shown(descriptors: Descriptors, kept: int) -> None:
    single = prefixed(order(id="abc"))
    body = (single * 4)[:kept]
    decoded = decode(descriptors, body, "Chat", cut=True)
    if kept < len(single):
        assert decoded is None
    else:
        assert decoded is not None
        assert json.loads(decoded.text) == [{"id": "abc"}] * (kept // len(single))
    # Nothing was cut: then what is left over is no message.
    assert (decode(descriptors, body, "Chat") is None) is bool(kept % len(single))
    assert (decode(descriptors, body, "Get", cut=True) is None) is (kept != len(single))


# --- compression --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "encoder"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_messages(descriptors: Descriptors, encoding: str, encoder: Any) -> None:
    body = prefixed(encoder(order(id="a" * 50)), 1) + prefixed(order(id="b")) + prefixed(encoder(order(id="c")), 1)
    assert shown(descriptors, body, "Put", encoding=encoding) == [{"id": "a" * 50}, {"id": "b"}, {"id": "c"}]


@pytest.mark.parametrize("encoding", ["", "identity", "snappy", "gzip"])
def test_what_cannot_be_uncompressed_is_not_decoded(descriptors: Descriptors, encoding: str) -> None:
    assert decode(descriptors, prefixed(order(id="a"), 1), encoding=encoding) is None


def test_what_becomes_too_large_is_left_out(descriptors: Descriptors) -> None:
    large = prefixed(gzip.compress(order(id="a" * 1000)), 1)
    decoded = decode(descriptors, prefixed(order(id="b")) + large, "Put", encoding="gzip", limit=500)
    assert decoded == Decoded('[{"id":"b"}]', False, ())
    assert decode(descriptors, large, encoding="gzip", limit=500) is None
    # Together they are too large, each alone is not.
    twice = decode(descriptors, large * 2, "Put", encoding="gzip", limit=1500)
    assert twice is not None
    assert (len(json.loads(twice.text)), twice.whole) == (1, False)


def test_a_bomb_costs_no_more_than_the_limit(descriptors: Descriptors) -> None:
    bomb = prefixed(gzip.compress(bytes(50_000_000)), 1)
    assert decode(descriptors, bomb, "Put", encoding="gzip") is None
    tracemalloc.start()
    try:
        assert decode(descriptors, bomb * 3, "Put", encoding="gzip") is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# --- secrets ------------------------------------------------------------------------------------------------------


def test_secret_fields_are_replaced_wherever_they_are(descriptors: Descriptors) -> None:
    free = struct_pb2.Struct()
    free.update({"list": [{"api-key": 7}], "sub": {"clientSecret": {"a": "s3cret"}}})
    body = prefixed(
        order(access_token="s3cret", parts=[{"access_token": "s3cret"}], labels={"cookie": "s3cret"}, free=free)
    )
    decoded = decode(descriptors, body)
    assert decoded is not None
    assert "s3cret" not in decoded.text
    hidden = "[redacted]"
    assert json.loads(decoded.text) == {
        "accessToken": hidden,
        "parts": [{"accessToken": hidden}],
        "labels": {"cookie": hidden},
        "free": {"list": [{"api-key": hidden}], "sub": {"clientSecret": hidden}},
    }
    assert set(decoded.redacted) == {"accessToken", "cookie", "api-key", "clientSecret"}
    assert len(decoded.redacted) == 4


def test_names_of_the_users_own_and_none(tmp_path: Path) -> None:
    path = write(tmp_path, descriptor_set(shop()))
    body = prefixed(order(total_cents=5, access_token="s3cret"))
    assert shown(Descriptors([path], Redactor(["Total-Cents"])), body)["totalCents"] == "[redacted]"
    assert shown(Descriptors([path], Redactor(enabled=False)), body)["accessToken"] == "s3cret"


# --- what is not what it should be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"\x0a\x05ab",  # a length beyond the end
        b"\x0a\x01\xff",  # no UTF-8
        b"\x0f",  # a wire type that there is not
        order(at=timestamp_pb2.Timestamp(seconds=1 << 60)),
        order(took=duration_pb2.Duration(seconds=1 << 60)),
        order(free=struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=float("nan"))})),
    ],
)
def test_messages_that_cannot_be_read_or_shown(descriptors: Descriptors, payload: bytes) -> None:
    assert decode(descriptors, prefixed(payload)) is None
    assert decode(descriptors, prefixed(order(id="a")) + prefixed(payload), "Put") is None


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0\0\0", b"\0\0\0\0\1", b"\2\0\0\0\0", b"\0\xff\xff\xff\xff"])
def test_what_is_not_framed(descriptors: Descriptors, body: bytes) -> None:
    assert decode(descriptors, body) is None
    assert decode(descriptors, body, "Put") is None


def test_methods_that_are_not_known(descriptors: Descriptors) -> None:
    body = prefixed(order(id="a"))
    assert decode(descriptors, body, "Delete") is None
    assert decode(descriptors, body, service="shop.Others") is None
    assert decode(descriptors, body, "", service="") is None


def test_messages_inside_of_messages_without_end(descriptors: Descriptors) -> None:
    packed = any_pb2.Any()
    for _ in range(3000):
        packed = any_pb2.Any(type_url="x/google.protobuf.Any", value=packed.SerializeToString())
    body = prefixed(order(more=packed))
    assert decode(descriptors, body, limit=1 << 20) is None


def test_text_that_becomes_too_long_is_none(descriptors: Descriptors) -> None:
    packed = b"\x4a\xac\x02" + bytes(300)  # 300 times a name of 60 characters
    assert decode(descriptors, prefixed(packed), limit=400) is None
    assert decode(descriptors, prefixed(packed), limit=4000) is not None


def test_more_than_may_be_decoded_is_left_out(descriptors: Descriptors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "DECODED_MAX_BYTES", 10)
    assert decode(descriptors, prefixed(order(id="a" * 9))) is None
    assert decode(descriptors, prefixed(order(id="a" * 8))) is not None


SEEDS = [
    order(id="a", access_token="s3cret", parts=[{"id": "b", "weight": 1.5}], labels={"a": "b"}, kinds=[0, 1, 2]),
    order(at=timestamp_pb2.Timestamp(seconds=1), took=duration_pb2.Duration(seconds=1), data=b"\xff"),
    order(more=any_pb2.Any(type_url="x/shop.Order", value=order(id="c"))),
    order(free=struct_pb2.Struct(fields={"a": struct_pb2.Value(number_value=1)})),
]


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """Messages, some with bytes changed, and what was never one."""
    data = bytearray(draw(st.sampled_from(SEEDS) | st.binary(max_size=60)))
    for _ in range(draw(st.integers(0, 4))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(
    st.lists(payloads(), max_size=3),
    st.binary(max_size=8),
    st.sampled_from([*METHODS, "None"]),
    st.sampled_from(["shop.Orders", "old.Orders"]),
    st.sampled_from(["", "gzip", "deflate"]),
    st.booleans(),
    st.sampled_from([0, 10, LIMIT]),
)
def test_anything_gives_json_or_nothing(
    descriptors: Descriptors,
    parts: list[bytes],
    rest: bytes,
    method: str,
    service: str,
    encoding: str,
    cut: bool,
    limit: int,
) -> None:
    coded = gzip.compress if encoding == "gzip" else zlib.compress
    body = b"".join(prefixed(coded(part), 1) if encoding else prefixed(part) for part in parts) + rest
    decoded = decode(descriptors, body, method, service=service, encoding=encoding, cut=cut, limit=limit)
    if decoded is not None:
        assert "s3cret" not in decoded.text or "accessToken" not in decoded.text
        assert len(decoded.text) <= limit * TEXT_GROWTH_MAX
        value = json.loads(decoded.text)
        assert isinstance(value, list) is METHODS[method][0]


# --- files --------------------------------------------------------------------------------------------------------


def test_files_in_any_order_and_files_that_contradict_each_other(tmp_path: Path) -> None:
    changed = shop()
    changed.service[0].method[0].name = "GetNow"
    changed.message_type[0].field[0].json_name = "number"
    first = write(tmp_path, descriptor_set(shop(), after=True), "first.bin")
    second = write(tmp_path, descriptor_set(changed), "second.bin")
    both = Descriptors([first, second], Redactor())
    body = prefixed(order(id="a"))
    assert shown(both, body, "Get") == {"id": "a"}
    assert shown(both, body, "GetNow") == {"number": "a"}


def refusal(path: str) -> str:
    with pytest.raises(CommandError) as raised:
        Descriptors([path], Redactor())
    assert raised.value.exit_code == 2
    text = str(raised.value)
    assert text.startswith(f"--proto {path}: ") and "\n" not in text
    return text


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in refusal(str(tmp_path / "none"))
    assert "directory" in refusal(str(tmp_path))
    for data, reason in (
        (b'syntax = "proto3";\n', "no descriptor set"),
        (b"", "no service"),
        (descriptor_set(), "no service"),
        (descriptor_set(shop(), imports=False), "google/protobuf/any.proto"),
    ):
        text = refusal(write(tmp_path, data))
        assert reason in text
        assert "protoc --include_imports --descriptor_set_out" in text
    circle = [FileDescriptorProto(name=a, dependency=[b]) for a, b in (("a", "b"), ("b", "a"))]
    assert "cycle" in refusal(write(tmp_path, descriptor_set(*circle)))
    monkeypatch.setattr(protobuf, "FILE_MAX_BYTES", 100)
    assert "more than 100 bytes" in refusal(write(tmp_path, descriptor_set(shop())))


# --- in the record ------------------------------------------------------------------------------------------------


def record(message: Message, descriptors: Descriptors) -> dict[str, Any]:
    writer = RecordWriter(
        Redactor(), wall_offset_ns=1 << 60, body_limit=LIMIT, raw_payload=True, descriptors=descriptors
    )
    made: dict[str, Any] = json.loads(writer.render(message))
    SCHEMA.validate(made)
    return made


def test_a_record_with_a_decoded_body(descriptors: Descriptors) -> None:
    body = prefixed(order(id="a", access_token="s3cret"))
    made = record(grpc(body, messages=1, message_bytes=len(body) - 5), descriptors)
    assert json.loads(made["body"]) == {"id": "a", "accessToken": "[redacted]"}
    assert (made["redacted"], made["body_bytes"]) == (["accessToken"], len(body))
    assert "body_encoding" not in made


def test_secrets_of_body_and_trailers_stand_together(descriptors: Descriptors) -> None:
    body = prefixed(order(access_token="s3cret"))
    made = record(grpc(body, request=False, status=0, trailers=(("cookie", "s3cret"),)), descriptors)
    assert made["redacted"] == ["accessToken", "cookie"]
    assert "s3cret" not in json.dumps(made)


def test_what_limits_cut_is_truncated(descriptors: Descriptors) -> None:
    body = prefixed(order(id="a"))
    made = record(grpc(body + b"\0\0", method="Put", completeness=Completeness.TRUNCATED), descriptors)
    assert (made["body"], made["completeness"]) == ('[{"id":"a"}]', "truncated")
    large = prefixed(gzip.compress(order(id="b" * LIMIT)), 1)
    made = record(grpc(body + large, method="Put", encoding="gzip"), descriptors)
    assert (made["body"], made["completeness"]) == ('[{"id":"a"}]', "truncated")


def test_a_body_with_a_hole_is_not_decoded(descriptors: Descriptors) -> None:
    body = prefixed(order(id="a"))
    facts: dict[str, Any] = {"missing_bytes": 3, "missing_reason": "ring_full"}
    made = record(grpc(body, completeness=Completeness.GAP, **facts), descriptors)
    assert made["body_encoding"] == "base64"
    assert made["completeness"] == "gap"


def test_the_option_reads_its_files_before_anything_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, descriptor_set(shop()))
    log = tmp_path / "http.log"
    outputs = Outputs(Config(proto=(path,), output=str(log)), Counters(), 0, lambda _: None)
    outputs.emit([grpc(prefixed(order(id="a")))])
    outputs.close()
    assert json.loads(log.read_text())["body"] == '{"id":"a"}'
    for config in (Config(proto=(os.devnull,), output=str(log)), Config(proto=(os.devnull,), no_output=True)):
        with pytest.raises(CommandError, match=f"--proto {os.devnull}: there is no service in it"):
            Outputs(config, Counters(), 0, lambda _: None)
