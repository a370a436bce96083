"""netprofiler.sinks.jsonlines: HTTP/2, gRPC and WebSocket, from messages made by hand."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import netprofiler
from netprofiler.exchange import Completeness, Message, Tls
from netprofiler.redaction import Redactor
from netprofiler.sinks.jsonlines import RecordWriter
from tests.unit.sinks.messages import a_link, grpc, h2_request, h2_response, message, websocket
from tests.unit.sinks.test_jsonlines import KEYS, WALL_NS

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(netprofiler.__file__).parent / "record.schema.json").read_text(encoding="utf-8"))
)
Record = dict[str, Any]


def record(one: Message, *, redactor: Redactor | None = None) -> Record:
    writer = RecordWriter(redactor or Redactor(), wall_offset_ns=WALL_NS, body_limit=4096, raw_payload=True)
    line = writer.render(one)
    assert line == writer.render(one)  # from what it kept of the first time
    shown: Record = json.loads(line)
    SCHEMA.validate(shown)
    assert list(shown) == [key for key in KEYS if key in shown]
    return shown


# --- HTTP/2 -------------------------------------------------------------------------------------------------------


def test_all_keys_of_an_http2_request_and_its_response() -> None:
    asked = message(h2_request("POST", "/a", ((":scheme", "https"), (":authority", "h"), ("x-a", "1"))), b"hi")
    answered = message(h2_response(404, (("x-b", "2"),)), b"no", request=asked, time_ns=asked.time_ns + 500_000)
    common = {"pid": 1234, "tid": 1235, "comm": "traffic", "cmdline": "/bin/traffic", "role": "client"}
    assert record(asked) == common | {
        "timestamp": "2026-11-21T04:18:24.000000000Z",
        "direction": "send",
        "source_ip": "10.0.0.1",
        "source_port": 5000,
        "dest_ip": "10.0.0.2",
        "dest_port": 80,
        "bytes": 22,
        "protocol": "HTTP/2",
        "method": "POST",
        "url": "/a",
        "body": "hi",
        "body_bytes": 2,
        "headers": {":scheme": "https", ":authority": "h", "x-a": "1"},
        "connection": "sock:[7]",
        "exchange": "sock:[7]#3",
        "hop": "10.0.0.1:5000>10.0.0.2:80@100",
        "completeness": "complete",
    }
    assert record(answered) == common | {
        "timestamp": "2026-11-21T04:18:24.000500000Z",
        "direction": "recv",
        "source_ip": "10.0.0.2",
        "source_port": 80,
        "dest_ip": "10.0.0.1",
        "dest_port": 5000,
        "bytes": 12,
        "protocol": "HTTP/2",
        "status_code": 404,
        "body": "no",
        "body_bytes": 2,
        "headers": {"x-b": "2"},
        "connection": "sock:[7]",
        "exchange": "sock:[7]#3",
        "hop": "10.0.0.2:80>10.0.0.1:5000@100",
        "ttfb_ms": 0.5,
        "duration_ms": 1.0,
        "completeness": "complete",
    }


def test_what_an_http2_head_does_not_know_is_absent_and_counted() -> None:
    whole = record(message(h2_request("GET", "", unknown=2), completeness=Completeness.PARTIAL))
    assert (whole["method"], whole["unknown_fields"], whole["completeness"]) == ("GET", 2, "partial")
    assert "url" not in whole
    target_alone = record(message(h2_request("", "/a?token=s3cret", unknown=1)))
    assert (target_alone["url"], target_alone["redacted"]) == ("/a?token=[redacted]", ["token"])
    assert "method" not in target_alone
    nothing = record(message(h2_response(0, unknown=7), request=message(h2_request("", "", unknown=3))))
    assert not {"method", "url", "status_code", "reason"} & nothing.keys()
    assert (nothing["unknown_fields"], nothing["ttfb_ms"]) == (7, 0)
    assert "unknown_fields" not in record(message(h2_request()))


def test_http2_bodies_are_decoded_and_have_trailers() -> None:
    coded = gzip.compress(b"hello")
    shown = record(message(h2_response(codings=("gzip",)), coded, trailers=(("x-sum", "1"), ("x-sum", "2"))))
    assert (shown["body"], shown["body_bytes"]) == ("hello", len(coded))
    assert shown["trailers"] == {"x-sum": ["1", "2"]}
    assert "raw_payload" not in shown


def test_http2_secrets_leave_no_trace() -> None:
    headers = ((":authority", "a"), ("cookie", "s3cret"), ("cookie", "s3cret"), ("x-api-key", "s3cret"))
    shown = record(
        message(
            h2_request("GET", "/a?token=s3cret&b=1", headers, unknown=1),
            trailers=(("x-auth-token", "s3cret"), ("x-sum", "1")),
        )
    )
    assert "s3cret" not in json.dumps(shown)
    assert shown["url"] == "/a?token=[redacted]&b=1"
    assert shown["headers"][":authority"] == "a"
    assert shown["headers"]["cookie"] == ["[redacted]", "[redacted]"]
    assert shown["trailers"] == {"x-auth-token": "[redacted]", "x-sum": "1"}
    assert shown["redacted"] == ["cookie", "x-api-key", "token", "x-auth-token"]
    assert shown["unknown_fields"] == 1


@pytest.mark.parametrize(
    ("made", "offered", "alpn"),
    [
        (message(h2_request()), ("h2", "http/1.1"), "h2"),
        (websocket("text", b"a"), ("h2", "http/1.1"), "http/1.1"),
        (message(h2_request()), ("http/1.1",), None),
    ],
)
def test_alpn_is_the_offer_that_is_spoken(made: Message, offered: tuple[str, ...], alpn: str | None) -> None:
    made.link = a_link(tls=Tls("openssl", "1.3", alpn_offered=offered))
    assert record(made)["tls"].get("alpn") == alpn


# --- gRPC ---------------------------------------------------------------------------------------------------------


def test_a_grpc_call() -> None:
    asked = grpc(b"\0\0\0\0\2\x08\x01", messages=1, message_bytes=2)
    shown = record(asked)
    assert shown["grpc"] == {"service": "shop.Orders", "method": "Get", "messages": 1, "message_bytes": 2}
    assert list(shown["grpc"]) == ["service", "method", "messages", "message_bytes"]
    # UTF-8, all of it, and no text.
    assert (shown["body"], shown["body_encoding"]) == (base64.b64encode(asked.body).decode(), "base64")
    answered = grpc(
        request=False,
        status=5,
        message='no "order" €',
        trailers=(("grpc-status", "5"), ("grpc-message", "no%20order")),
    )
    answered.link.tls = Tls("go", "1.3")
    shown = record(answered)
    assert shown["grpc"] == {
        "service": "shop.Orders",
        "method": "Get",
        "messages": 0,
        "message_bytes": 0,
        "status": 5,
        "message": 'no "order" €',
    }
    assert "body" not in shown
    assert shown["trailers"]["grpc-status"] == "5"


def test_what_is_not_known_of_a_grpc_call_is_absent() -> None:
    shown = record(grpc(request=False, service="", method="", messages=2, message_bytes=9))
    assert shown["grpc"] == {"messages": 2, "message_bytes": 9}
    assert record(grpc(request=False, status=0, message=""))["grpc"].keys() == {
        "service",
        "method",
        "messages",
        "message_bytes",
        "status",
    }


def test_a_request_has_no_grpc_status_whatever_it_says() -> None:
    assert record(grpc(status=0, message="x"))["grpc"].keys() == {"service", "method", "messages", "message_bytes"}


@pytest.mark.parametrize(
    ("completeness", "more"),
    [
        (Completeness.TRUNCATED, {}),
        (Completeness.PARTIAL, {}),
        (Completeness.OPEN, {}),
        (Completeness.GAP, {"missing_bytes": 3, "missing_reason": "ring_full"}),
    ],
)
def test_a_grpc_body_known_in_part_is_shown_as_it_is(completeness: Completeness, more: Record) -> None:
    shown = record(grpc(b"\0\0\0\0\x09\xc3", request=False, completeness=completeness, **more))
    assert base64.b64decode(shown["body"]) == b"\0\0\0\0\x09\xc3"
    assert shown["completeness"] == completeness.value
    assert {key: shown[key] for key in more} == more


def test_a_compressed_grpc_body_with_a_hole_is_not_shown() -> None:
    """Where its messages begin is not known, so neither is what is in them."""
    facts: Record = {"completeness": Completeness.GAP, "missing_bytes": 3, "missing_reason": "ring_full"}
    shown = record(grpc(b"\1\0\0\0\x09\xc3", encoding="gzip", **facts))
    assert (base64.b64decode(shown["body"]), shown["redacted"]) == (b"[redacted]", ["compressed"])
    shown = record(grpc(b"\0\0\0\0\x09\xc3", encoding="identity", **facts))
    assert base64.b64decode(shown["body"]) == b"\0\0\0\0\x09\xc3"


def test_grpc_metadata_is_redacted_by_name() -> None:
    headers = ((":authority", "a"), ("authorization", "Bearer s3cret"), ("x-token-bin", "s3cret"))
    asked = grpc(b"\0\0\0\0\0", head=h2_request("POST", "/shop.Orders/Get", headers))
    shown = record(asked, redactor=Redactor(["x-token-bin"]))
    assert shown["redacted"] == ["authorization", "x-token-bin"]
    assert "s3cret" not in json.dumps(shown)
    answered = grpc(request=False, status=16, message="s3cret", trailers=(("grpc-message", "s3cret"),))
    shown = record(answered, redactor=Redactor(["grpc-message"]))
    assert "s3cret" not in json.dumps(shown)
    assert (shown["grpc"]["message"], shown["redacted"]) == ("[redacted]", ["grpc-message"])


# --- WebSocket ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [True, False])
def test_a_websocket_message(sent: bool) -> None:
    shown = record(websocket("text", "grüß\n".encode(), sent=sent))
    assert not {"method", "url", "status_code", "headers", "raw_payload", "trailers", "ttfb_ms"} & shown.keys()
    assert shown["protocol"] == "websocket"
    assert shown["direction"] == ("send" if sent else "recv")
    assert (shown["bytes"], shown["body"], shown["body_bytes"]) == (9, "grüß\n", 7)
    assert shown["websocket"] == {"opcode": "text"}
    assert shown["exchange"] == "sock:[7]#3"


def test_a_binary_websocket_message_is_text_where_it_is_utf8() -> None:
    shown = record(websocket("binary", b"\xff\xfe"))
    assert (shown["body"], shown["body_encoding"]) == ("//4=", "base64")
    shown = record(websocket("binary", b"ab"))
    assert (shown["body"], shown["websocket"]) == ("ab", {"opcode": "binary"})
    assert "body_encoding" not in shown


def test_an_inflated_websocket_message_keeps_its_size_on_the_stream() -> None:
    shown = record(websocket("text", b"a" * 100, body_bytes=9, inflated=True, completeness=Completeness.TRUNCATED))
    assert (shown["body"], shown["body_bytes"], shown["completeness"]) == ("a" * 100, 9, "truncated")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"close_code": 1000, "close_reason": 'b"ye'}, {"close_code": 1000, "close_reason": 'b"ye'}),
        ({"close_code": 1001, "close_reason": ""}, {"close_code": 1001}),
        ({"close_code": 1001}, {"close_code": 1001}),
        ({}, {}),
    ],
)
def test_the_end_of_a_websocket(facts: Record, expected: Record) -> None:
    assert record(websocket("close", **facts))["websocket"] == {"opcode": "close"} | expected


@pytest.mark.parametrize("opcode", ["ping", "pong"])
def test_websocket_control_frames(opcode: str) -> None:
    shown = record(websocket(opcode))
    assert (shown["websocket"], shown["body_bytes"]) == ({"opcode": opcode}, 0)
    assert "body" not in shown


# --- what the schema refuses --------------------------------------------------------------------------------------


def h2(**changed: Any) -> Record:
    shown = record(message(h2_request())) | changed
    return {key: value for key, value in shown.items() if value is not None}


@pytest.mark.parametrize(
    "wrong",
    [
        h2(raw_payload="POST /a"),
        h2(status_code=200),
        h2(headers=None),
        h2(unknown_fields=0),
        h2(protocol="HTTP/1.1", method=None),
        h2(protocol="HTTP/1.1", method=None, url=None),
        h2(protocol="HTTP/1.1", unknown_fields=1),
        h2(grpc={"service": "a", "messages": 0, "message_bytes": 0}),
        h2(websocket={"opcode": "text"}),
        h2(protocol="websocket", websocket={"opcode": "text"}),
        h2(protocol="websocket", websocket={"opcode": "text"}, headers=None),
    ],
)
def test_the_schema_refuses(wrong: Record) -> None:
    assert not SCHEMA.is_valid(wrong)
