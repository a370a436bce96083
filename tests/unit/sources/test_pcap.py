"""Packet captures: every link type, every order of packets, and files that are damaged."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netprofiler.counters import Row, make_ledger
from netprofiler.errors import CommandError
from netprofiler.exchange import Completeness, Message
from netprofiler.pipeline import Pipeline
from netprofiler.sinks.jsonlines import hop_prefix
from netprofiler.sources import pcap
from netprofiler.sources.base import Batch, DamagedCaptureError, End, Rounds
from netprofiler.sources.packets import PACKET_BYTES_MAX
from netprofiler.sources.pcap import Looks, PacketCapture, looks_like
from tests.unit.sources.packets import (
    ACK,
    ETHERNET,
    LOOP,
    NULL,
    PSH,
    RAW,
    SLL,
    SLL2,
    START_NS,
    SYN,
    Conversation,
    Packets,
    ipv4,
    ipv6,
    tcp,
)

REQUEST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ngoodbye"


@dataclass
class Seen:
    messages: list[Message]
    rows: dict[str, int]
    """Of the ledger, in bytes; those that are not 0."""
    notes: list[str]
    times_ns: list[int]
    error: DamagedCaptureError | None

    @property
    def texts(self) -> list[str]:
        return [
            f"{message.head.method or message.head.status} {message.head.target}"
            f"{message.body.decode('latin-1')} #{message.number} {message.completeness.value}"
            for message in self.messages
        ]


def replay(data: bytes, **options: Any) -> Seen:
    """As `netprofiler replay` does."""
    capture = PacketCapture("a.pcap", data[:4], io.BytesIO(data[4:]))
    pipeline = Pipeline(**options)
    seen = Seen([], {}, [], [], None)
    rows: dict[str, Row] | None = None
    now_ns = 0
    try:
        for frame in capture.frames():
            match frame:
                case Batch():
                    pipeline.feed(frame.data)
                case Rounds():
                    for now_ns in frame.times_ns:
                        assert not seen.times_ns or now_ns >= seen.times_ns[-1]
                        seen.times_ns.append(now_ns)
                        pipeline.tick(now_ns)
                case End():
                    rows = frame.rows
            seen.messages += pipeline.take_messages()
    except DamagedCaptureError as error:
        seen.error = error
    pipeline.drain(now_ns)
    seen.messages += pipeline.take_messages()
    seen.notes = capture.notes()
    ledger = make_ledger(pipeline.counters, rows)
    for unit in ("bytes", "calls"):
        table = ledger[unit]
        assert isinstance(table, dict)
        assert sum(table["rows"].values()) == table["total"]
        assert table["rows"]["pending"] == 0
        if unit == "bytes":
            seen.rows = {name: count for name, count in table["rows"].items() if count}
    return seen


def exchange(packets: Packets, **facts: Any) -> Conversation:
    conversation = Conversation(packets, **facts).open()
    conversation.send(REQUEST)
    conversation.recv(RESPONSE)
    conversation.close()
    return conversation


WHOLE = ["POST /echohello #1 complete", "200 goodbye #1 complete"]


def test_one_exchange() -> None:
    packets = Packets()
    exchange(packets)
    seen = replay(packets.pcap(nanoseconds=True))
    assert seen.texts == WHOLE
    assert seen.rows == {"recorded": len(REQUEST) + len(RESPONSE)}
    request, response = seen.messages
    assert response.request is request
    assert request.link.passive
    assert request.link.name == "tcp:[1]"
    assert (request.pid, request.tid, request.process) == (0, 0, None)
    assert request.time_ns == START_NS + 400_000
    assert (request.position, response.position) == (1000, 0xFFFFFFF0)
    assert hop_prefix(request.link, request.direction) == "127.0.0.1:54321>127.0.0.1:8080@"
    assert hop_prefix(response.link, response.direction) == "127.0.0.1:8080>127.0.0.1:54321@"


@pytest.mark.parametrize("kind", [ETHERNET, SLL, SLL2, NULL, LOOP, RAW, 12])
@pytest.mark.parametrize("addresses", [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "::1")])
def test_link_types(kind: int, addresses: tuple[str, str]) -> None:
    packets = Packets(kind)
    exchange(packets, client=(addresses[0], 1), server=(addresses[1], 2))
    seen = replay(packets.pcap())
    assert seen.texts == WHOLE
    assert (seen.messages[0].link.local_ip, seen.messages[0].link.remote_ip) == addresses


@pytest.mark.parametrize("kind", [ETHERNET, SLL, SLL2])
@pytest.mark.parametrize("vlans", [(0x8100,), (0x88A8, 0x8100), (0x8100, 0x8100, 0x8100)])
def test_vlans(kind: int, vlans: tuple[int, ...]) -> None:
    packets = Packets(kind, vlans)
    exchange(packets)
    assert replay(packets.pcap()).texts == WHOLE


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_byte_orders_and_resolutions(order: str, nanoseconds: bool) -> None:
    packets = Packets()
    exchange(packets)
    seen = replay(packets.pcap(order=order, nanoseconds=nanoseconds))
    assert seen.texts == WHOLE
    assert seen.messages[0].time_ns == START_NS + 400_000


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng(order: str) -> None:
    packets = Packets()
    exchange(packets)
    seen = replay(packets.pcapng(order=order))
    assert seen.texts == WHOLE
    assert [message.time_ns for message in seen.messages] == [START_NS + 400_000, START_NS + 500_000]


def test_pcapng_of_two_sections() -> None:
    packets = Packets()
    exchange(packets)
    exchange(packets, client=("127.0.0.1", 54322))
    seen = replay(packets.pcapng(order="<") + packets.pcapng(order=">"))
    assert len(seen.messages) == 4
    """The second section says the same again: all of it is cut away by its positions, or comes after the end."""


def test_ipv6_extension_headers() -> None:
    packets = Packets()
    conversation = Conversation(packets, client=("::1", 1), server=("::2", 2))
    options = bytes([60, 0, 1, 4, 0, 0, 0, 0]) + bytes([6, 0, 1, 4, 0, 0, 0, 0])
    for sender, payload in ((0, REQUEST), (1, RESPONSE)):
        segment = conversation.segment(sender, PSH | ACK, payload, *([1000, 5000] if sender == 0 else [5000, 1057]))
        ends = ("::1", "::2") if sender == 0 else ("::2", "::1")
        packets.add(ipv6(*ends, segment, extensions=options, first=0))
    assert replay(packets.pcap()).texts == WHOLE


def test_padding_of_short_frames_is_no_payload() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(b"G")
    conversation.send(b"ET / HTTP/1.1\r\n\r\n")
    seen = replay(packets.pcap())
    assert seen.texts == ["GET / #1 complete"]


# ---- order ----


def test_one_byte_a_packet() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    for byte in REQUEST:
        conversation.send(bytes([byte]))
    for byte in RESPONSE:
        conversation.recv(bytes([byte]))
    conversation.close()
    seen = replay(packets.pcap())
    assert seen.texts == WHOLE
    assert seen.rows == {"recorded": len(REQUEST) + len(RESPONSE)}


def test_every_packet_twice() -> None:
    """As `tcpdump -i any` may see it, on the way in and on the way out."""
    packets = Packets()
    conversation = exchange(packets)
    conversation.sequences = [10_000, 20_000]
    exchange(packets, client=("127.0.0.1", 54322))
    packets.packets = [packet for packet in packets.packets for _ in range(2)]
    seen = replay(packets.pcap())
    assert [message.completeness for message in seen.messages] == [Completeness.COMPLETE] * 4
    assert seen.rows["recorded"] == 2 * (len(REQUEST) + len(RESPONSE))


@given(st.permutations(range(6)), st.sets(st.integers(0, 5)))
def test_any_order_and_repetition(order: list[int], repeated: set[int]) -> None:
    """Segments of both directions after the handshake, in any order, some twice."""
    packets = Packets()
    conversation = Conversation(packets).open()
    handshake = len(packets.packets)
    for part in (REQUEST[:3], REQUEST[3:30], REQUEST[30:]):
        conversation.send(part)
    for part in (RESPONSE[:20], RESPONSE[20:21], RESPONSE[21:]):
        conversation.recv(part)
    segments = packets.packets[handshake:]
    mixed = [segments[number][1] for number in order] + [segments[number][1] for number in sorted(repeated)]
    del packets.packets[handshake:]
    for number, packet in enumerate(mixed):
        packets.packets.append((START_NS + 1_000_000 + number * 1000, packet))
    conversation.close()
    seen = replay(packets.pcap())
    bodies = {message.head.method: message.body for message in seen.messages}
    assert bodies == {"POST": b"hello", "": b"goodbye"}
    assert len(seen.messages) == 2
    assert {message.completeness for message in seen.messages} == {Completeness.COMPLETE}
    assert {message.number for message in seen.messages} == {1}


def test_overlap() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(REQUEST[:40])
    conversation.again(0, REQUEST[30:], back=10)
    conversation.sequences[0] += len(REQUEST) - 40
    conversation.recv(RESPONSE)
    conversation.close()
    assert replay(packets.pcap()).texts == WHOLE


def test_retransmission_after_loss_in_the_net() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(REQUEST)
    head, body = RESPONSE[:38], RESPONSE[38:]
    conversation.sequences[1] += len(head)
    conversation.recv(body)
    packets.time_ns += 200_000_000
    conversation.again(1, head, back=len(RESPONSE))
    conversation.close()
    assert replay(packets.pcap()).texts == WHOLE


def test_what_the_capture_dropped_is_a_gap() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(REQUEST)
    conversation.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"a" * 1000)
    conversation.sequences[1] += 1000
    conversation.recv(b"c" * 1000)
    packets.time_ns += 1_000_000_000
    conversation.close()
    seen = replay(packets.pcap())
    assert seen.messages[1].completeness is Completeness.GAP
    assert seen.messages[1].missing_bytes == 1000
    assert seen.messages[1].body == b"a" * 1000
    assert seen.messages[1].body_bytes == 3000


def test_snap_length() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(REQUEST)
    conversation.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a" * 1000)
    conversation.send(REQUEST)
    conversation.recv(RESPONSE)
    conversation.close()
    seen = replay(packets.pcap(snap_length=300))
    assert [message.completeness.value for message in seen.messages] == [
        "complete",
        "truncated",
        "complete",
        "complete",
    ]
    assert seen.messages[1].body_bytes == 1000
    assert set(seen.messages[1].body) == {ord("a")}
    assert 0 < len(seen.messages[1].body) < 300
    assert seen.rows["over_limit"] == 1000 - len(seen.messages[1].body)


def test_segmentation_offload_has_no_length() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    segment = conversation.segment(0, PSH | ACK, REQUEST, *conversation.sequences)
    packets.add(ipv4("127.0.0.1", "127.0.0.1", segment, length=0))
    conversation.sequences[0] += len(REQUEST)
    conversation.recv(RESPONSE)
    assert replay(packets.pcap()).texts == WHOLE


# ---- connections ----


def test_joined_with_a_request() -> None:
    packets = Packets()
    conversation = Conversation(packets)
    conversation.recv(b"the rest of something, " * 10)
    conversation.send(b"and of a request")
    conversation.send(REQUEST)
    conversation.recv(RESPONSE)
    seen = replay(packets.pcap())
    assert seen.texts == WHOLE
    assert seen.rows["not_http"] == 230 + 16
    request = seen.messages[0]
    assert hop_prefix(request.link, request.direction) == "127.0.0.1:54321>127.0.0.1:8080@"


def test_joined_with_a_response() -> None:
    packets = Packets()
    conversation = Conversation(packets)
    conversation.recv(RESPONSE)
    conversation.send(REQUEST)
    conversation.recv(RESPONSE)
    seen = replay(packets.pcap())
    assert [message.head.status for message in seen.messages if not message.head.is_request] == [200, 200]
    answer = next(message for message in seen.messages if message.request is not None)
    assert answer.position == (0xFFFFFFF0 + len(RESPONSE)) & 0xFFFFFFFF
    assert seen.messages[0].request is None


def test_ports_used_again() -> None:
    packets = Packets()
    exchange(packets)
    exchange(packets, sequences=[70_000, 90_000])
    seen = replay(packets.pcap())
    assert seen.texts == WHOLE * 2
    assert {message.link.name for message in seen.messages} == {"tcp:[1]", "tcp:[2]"}


def test_ports_used_again_without_an_end() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(REQUEST)
    conversation.recv(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil now")
    exchange(packets, sequences=[70_000, 90_000])
    seen = replay(packets.pcap())
    assert sorted(seen.texts) == sorted(["POST /echohello #1 complete", "200 until now #1 partial", *WHOLE])


def test_repeated_handshake_is_the_same_connection() -> None:
    packets = Packets()
    Conversation(packets).open()
    exchange(packets)
    seen = replay(packets.pcap())
    assert seen.texts == WHOLE
    assert seen.messages[0].link.name == "tcp:[1]"


@pytest.mark.parametrize("sender", [0, 1])
def test_reset(sender: int) -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(REQUEST)
    conversation.recv(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all")
    conversation.reset(sender)
    packets.time_ns += 1_000_000_000
    conversation.recv(b"too late")
    seen = replay(packets.pcap())
    assert seen.texts == ["POST /echohello #1 complete", "200 not all #1 partial"]
    assert seen.rows["unparsed"] == len(b"too late")


def test_until_close() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(b"GET / HTTP/1.0\r\n\r\n")
    conversation.recv(b"HTTP/1.0 200 OK\r\n\r\nall ")
    conversation.recv(b"of it")
    conversation.close()
    assert replay(packets.pcap()).texts == ["GET / #1 complete", "200 all of it #1 complete"]


def test_data_in_the_handshake() -> None:
    """TCP Fast Open, RFC 7413."""
    packets = Packets()
    conversation = Conversation(packets)
    conversation._segment(0, SYN, REQUEST, sequence=999, acknowledged=0)
    conversation.sequences[0] += len(REQUEST)
    conversation._segment(1, SYN | ACK, sequence=conversation.sequences[1] - 1)
    conversation.recv(RESPONSE)
    conversation.close()
    assert replay(packets.pcap()).texts == WHOLE


def test_only_one_direction_was_captured() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    packets.packets.pop(1)
    conversation.send(REQUEST)
    conversation.send(REQUEST)
    assert replay(packets.pcap()).texts == ["POST /echohello #1 complete", "POST /echohello #2 complete"]


def test_interim_record_comes_in_the_silence() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(REQUEST)
    conversation.recv(RESPONSE[:-3])
    packets.time_ns += 8_000_000_000
    conversation.recv(RESPONSE[-3:])
    seen = replay(packets.pcap())
    assert [message.completeness.value for message in seen.messages] == ["complete", "open", "complete"]


def test_many_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcap, "CONNECTIONS_MAX", 10)
    packets = Packets()
    for number in range(30):
        conversation = Conversation(packets, client=("127.0.0.1", 1000 + number)).open()
        conversation.send(REQUEST)
        conversation.recv(RESPONSE[:-1])
    data = packets.pcap()
    capture = PacketCapture("a.pcap", data[:4], io.BytesIO(data[4:]))
    list(capture.frames())
    assert len(capture._conversations) == 10
    seen = replay(data)
    assert len(seen.messages) == 60


# ---- what is not HTTP ----


@pytest.mark.parametrize(
    ("first", "row"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "tls"),
        (b"*1\r\n$4\r\nPING\r\n", "not_http"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not_http"),
        (bytes(range(256)), "not_http"),
    ],
)
def test_what_is_not_http_is_counted_and_not_passed_on(first: bytes, row: str) -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(first)
    conversation.recv(b"x" * 1000)
    conversation.send(REQUEST)
    conversation.close()
    seen = replay(packets.pcap())
    assert seen.messages == []
    assert seen.rows == {row: len(first) + 1000 + len(REQUEST)}
    data = packets.pcap()
    capture = PacketCapture("a.pcap", data[:4], io.BytesIO(data[4:]))
    assert not any(isinstance(frame, Batch) for frame in capture.frames())


def test_what_never_begins_is_not_held_for_ever() -> None:
    """The first bytes of a fresh connection were dropped by the capture."""
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.sequences[0] += 100
    for _ in range(pcap.HELD_SEGMENTS_MAX + 10):
        conversation.send(b"x" * 100)
    conversation.send(REQUEST)
    data = packets.pcap()
    capture = PacketCapture("a.pcap", data[:4], io.BytesIO(data[4:]))
    held = []
    for packet in capture._packets.packets():
        capture._take(packet)
        held.append(capture._held_bytes)
    assert max(held) <= (pcap.HELD_SEGMENTS_MAX + 1) * 100
    assert held[-1] == 0
    assert replay(data).texts == ["POST /echohello #1 complete"]


def test_ending_while_undecided() -> None:
    packets = Packets()
    conversation = Conversation(packets).open()
    conversation.send(b"GE")
    assert replay(packets.pcap()).rows == {"not_http": 2}
    conversation.close()
    assert replay(packets.pcap()).rows == {"not_http": 2}


def test_udp_and_arp_are_passed_over() -> None:
    packets = Packets()
    exchange(packets)
    datagram = bytearray(ipv4("127.0.0.1", "127.0.0.1", bytes(100)))
    datagram[9] = 17
    packets.add(bytes(datagram))
    packets.packets.append((packets.time_ns, bytes(12) + b"\x08\x06" + bytes(28)))
    seen = replay(packets.pcap())
    assert seen.texts == WHOLE
    assert seen.notes == []


def test_fragments_are_counted() -> None:
    packets = Packets()
    exchange(packets)
    packets.add(ipv4("127.0.0.1", "127.0.0.1", tcp((1, 2), 1, 1, ACK, b"GET /"), fragment=0x2000))
    packets.add(ipv4("127.0.0.1", "127.0.0.1", b"the rest", fragment=5))
    fragment = bytes([6, 0, 0, 1, 0, 0, 0, 7])
    packets.add(ipv6("::1", "::2", tcp((1, 2), 1, 1, ACK, b"GET /"), extensions=fragment, first=44))
    packets.add(ipv6("::1", "::2", b"rest", extensions=bytes([6, 0, 0, 8, 0, 0, 0, 7]), first=44))
    hop_by_hop = bytes([44, 0, 1, 4, 0, 0, 0, 0])
    packets.add(ipv6("::1", "::2", bytes(40), extensions=hop_by_hop + bytes([6, 0, 0, 8, 0, 0, 0, 7]), first=0))
    seen = replay(packets.pcap())
    assert seen.texts == WHOLE
    assert seen.notes == ["a.pcap: 5 packets were IP fragments, which are not put together"]
    assert seen.rows["unparsed"] == 37 + 8 + 37 + 4 + 40


LOOKS_C = """
#include <stdio.h>
#include <string.h>
typedef unsigned char u8;
typedef unsigned int u32;
#define __always_inline inline __attribute__((always_inline))
#define PREFIX_BYTES 16
#include "%s"
int main(void)
{
    u8 text[64];
    u32 length;
    while (fread(&length, 4, 1, stdin) == 1 && fread(text, 1, length, stdin) == length)
        putchar('0' + looks_like(text, length));
    return 0;
}
"""


def test_the_kernel_side_decides_the_same(tmp_path: Path) -> None:
    """bpf/detect.h, compiled for here."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "this test needs a C compiler (Debian: gcc)"
    header = Path(__file__).parents[3] / "bpf" / "detect.h"
    (tmp_path / "looks.c").write_text(LOOKS_C % header)
    subprocess.run(
        [compiler, "-Wno-unknown-pragmas", "-o", tmp_path / "looks", tmp_path / "looks.c"], check=True, timeout=60
    )
    starts = [
        b"GET / HTTP/1.1\r\n",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT a:443 HTTP/1.1",
        b"CONNECX a:443",
        b"VERSION-CONTROL /a",
        b"UPDATEREDIRECTREF /",
        b"BASELINE-CONTRO /aaaaaaa",
        b"BASELINE-CONTROL /aaaaaa",
        b"M-SEARCH * HTTP/1.1",
        b"GET http://a/ HTTP/1.1",
        b"GET HTTP://a/",
        b"GE /",
        b"-GET /",
        b"G-T /",
        b"get /",
        b"GET  /",
        b"GET x",
        b"HTTP/1.1 200 OK",
        b"HTTP/2 200",
        b"HTML /x",
        b"HT /x",
        b"HE /x",
        b"HEAD /x",
        b"PRI * HTTP/2.0\r\n",
        b"PRO * HTTP",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x05\x00",
        b"\x16\x03",
        b"\x00",
        b"A" * 20,
        b"AB" * 7 + b" /",
        b"ABC" * 5 + b" /",
    ]
    texts = [start[:size] for start in starts for size in range(1, len(start) + 1)]
    given_ = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    out = subprocess.run(
        [tmp_path / "looks"], input=given_, check=True, timeout=10, capture_output=True
    ).stdout.decode()
    names = dict(re.findall(r"#define LOOKS_(\w+) (\d)", header.read_text()))
    expected = [str(names[looks_like(text).name]) for text in texts]
    different = [text for text, here, there in zip(texts, expected, out, strict=True) if here != there]
    assert different == []
    assert {looks_like(text) for text in texts} == set(Looks)


# ---- files that are none, or only half ----


def test_unknown_link_type() -> None:
    with pytest.raises(CommandError, match="link type 105") as caught:
        replay(Packets(105).pcap())
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_unknown_link_type_of_an_interface_is_a_note() -> None:
    packets = Packets(105)
    packets.add(b"\x80" + bytes(50))
    seen = replay(packets.pcapng())
    assert seen.messages == []
    assert seen.notes == ["a.pcap: 1 packets were of link types that are not known here"]


def test_unknown_version() -> None:
    with pytest.raises(CommandError, match="version 3"):
        replay(Packets().pcap(version=3))


@pytest.mark.parametrize("generation", [False, True])
def test_every_truncation(generation: bool) -> None:
    packets = Packets()
    exchange(packets)
    data = packets.pcapng() if generation else packets.pcap()
    whole = replay(data).texts
    for size in range(4, len(data)):
        try:
            seen = replay(data[:size])
        except CommandError as error:
            assert ("truncated" in str(error), size < 24) == (True, True)  # noqa: PT017 - most are not raised
            continue
        assert [text.split()[0] for text in seen.texts] == [text.split()[0] for text in whole[: len(seen.texts)]]
        if seen.error is not None:
            assert "truncated" in str(seen.error)
            assert "a.pcap" in str(seen.error)


def test_packet_that_says_it_is_huge() -> None:
    data = bytearray(Packets().pcap())
    data += (0).to_bytes(8, "little") + (PACKET_BYTES_MAX + 1).to_bytes(4, "little") + (0).to_bytes(4, "little")
    error = replay(bytes(data)).error
    assert error is not None
    assert "damaged" in str(error)


@given(st.data())
def test_any_damage_is_survived(data: st.DataObject) -> None:
    """Bytes changed anywhere: a message at the most, never another exception."""
    packets = Packets(data.draw(st.sampled_from([ETHERNET, SLL2, RAW])), data.draw(st.sampled_from([(), (0x8100,)])))
    exchange(packets)
    exchange(packets, client=("::1", 3), server=("::2", 4))
    options = bytes([60, 0, 1, 4, 0, 0, 0, 0]) + bytes([6, 0, 1, 4, 0, 0, 0, 0])
    packets.add(ipv6("::1", "::2", tcp((1, 2), 1, 1, ACK, b"GET /"), extensions=options, first=0))
    packets.add(ipv6("::1", "::2", bytes(20), extensions=bytes([51, 0, 1, 4, 0, 0, 0, 0]), first=60))
    packets.add(ipv6("::1", "::2", bytes(20), extensions=bytes([6, 1, 0, 0, 0, 0, 0, 0]), first=43))
    file = bytearray(data.draw(st.sampled_from([packets.pcap(), packets.pcapng(), packets.pcapng(order=">")])))
    for at in data.draw(st.lists(st.integers(4, len(file) - 1), max_size=20)):
        file[at] = data.draw(st.integers(0, 255))
    try:
        replay(bytes(file))
    except CommandError as error:
        assert "a.pcap" in str(error)  # noqa: PT017 - it need not be raised


@given(st.sampled_from([ETHERNET, NULL, SLL, SLL2, RAW]), st.lists(st.binary(max_size=120), max_size=5))
def test_any_packet_is_survived(kind: int, bodies: list[bytes]) -> None:
    packets = Packets(kind)
    packets.packets = [(START_NS, body) for body in bodies]
    replay(packets.pcap())
