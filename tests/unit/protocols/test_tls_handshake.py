"""The hellos of real handshakes say what both ends say; what is odd is absent, and ends."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

import pytest

from netprofiler.protocols.tls_handshake import DIRECTION_BYTES_MAX, Facts, Handshake
from tests.unit.protocols.handshakes import (
    RANDOM,
    RETRY_RANDOM,
    Ends,
    Talk,
    client_hello,
    extension,
    message,
    protocols,
    record,
    server_hello,
    server_name,
)

TLS12 = ssl.TLSVersion.TLSv1_2
TLS13 = ssl.TLSVersion.TLSv1_3
IANA = {
    "ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "ECDHE-ECDSA-AES256-SHA": "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "ECDHE-ECDSA-AES128-CCM8": "TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8",
}
"""By OpenSSL's names, of a server with an ECDSA key."""

SELECTED_13 = extension(43, b"\x03\x04")


def facts_of(flights: Sequence[tuple[bool, bytes]], *, done: bool = True) -> Facts:
    handshake = Handshake()
    for from_client, data in flights:
        handshake.feed(from_client, data)
    assert handshake.done is done
    return handshake.facts


def of_client(*payloads: bytes, done: bool = True) -> Facts:
    """Of one record each, and of a server's hello that is beside the point."""
    flights = [(True, record(payload)) for payload in payloads]
    return facts_of([*flights, (False, record(server_hello()))], done=done)


def of_server(*records: bytes, done: bool = True) -> Facts:
    return facts_of([(True, record(client_hello())), *((False, each) for each in records)], done=done)


def told_by(talk: Talk, *, sni: str | None, offered: tuple[str, ...] = ()) -> Facts:
    """What has to come out, by what the two ends say."""
    assert talk.version is not None
    return Facts(
        version=talk.version.removeprefix("TLSv"),
        cipher=IANA.get(talk.cipher, talk.cipher),
        sni=sni,
        alpn_offered=offered,
        alpn_selected=None if talk.version == "TLSv1.3" else talk.alpn,
        client_random=talk.client_random,
    )


# --- real handshakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize(
    ("offered", "accepted", "agreed"),
    [
        ((), (), None),
        (("http/1.1",), (), None),
        (("h2", "http/1.1"), ("http/1.1",), "http/1.1"),
        (("h2", "http/1.1"), ("h2",), "h2"),
    ],
)
@pytest.mark.parametrize("name", ["localhost", "a.example.com", None])
def test_facts_are_what_both_ends_say(
    version: ssl.TLSVersion,
    offered: tuple[str, ...],
    accepted: tuple[str, ...],
    agreed: str | None,
    name: str | None,
) -> None:
    talk = Ends(version=version, offered=offered, accepted=accepted).talk(name)
    assert talk.alpn == agreed
    assert facts_of(talk.flights) == told_by(talk, sni=name, offered=offered)


@pytest.mark.parametrize("cipher", IANA)
def test_ciphers_have_ianas_names(cipher: str) -> None:
    talk = Ends(version=TLS12, ciphers=f"{cipher}:@SECLEVEL=0").talk()
    assert talk.cipher == cipher
    assert facts_of(talk.flights) == told_by(talk, sni="localhost")


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_resumed_session_has_all_facts_too(version: ssl.TLSVersion) -> None:
    ends = Ends(version=version, offered=["http/1.1"], accepted=["http/1.1"])
    first = ends.talk("one.example")
    again = ends.talk("one.example", first.session)
    assert not first.resumed and again.resumed
    assert first.client_random != again.client_random
    for talk in (first, again):
        assert facts_of(talk.flights) == told_by(talk, sni="one.example", offered=("http/1.1",))


def test_after_a_hello_retry_request_the_second_server_hello_counts() -> None:
    talk = Ends(server_curve="secp521r1").talk()
    assert RETRY_RANDOM in talk.sent(from_client=False)
    assert facts_of(talk.flights) == told_by(talk, sni="localhost")

    handshake = Handshake()
    for from_client, data in talk.flights:
        assert not handshake.done
        handshake.feed(from_client, data)
        if not from_client:
            break
    assert handshake.facts == Facts(sni="localhost", client_random=talk.client_random), "it alone negotiates nothing"
    assert not handshake.done


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize("piece", [1, 5, 7])
def test_pieces_give_the_same_and_done_comes_with_the_last_hello(version: ssl.TLSVersion, piece: int) -> None:
    talk = Ends(version=version, offered=["http/1.1"], accepted=["http/1.1"]).talk()
    handshake = Handshake()
    done_after = 0
    for from_client in (True, False):
        data = talk.sent(from_client=from_client)
        for at in range(0, len(data), piece):
            handshake.feed(from_client, data[at : at + piece])
            if not from_client and not handshake.done:
                done_after = at + piece
    assert handshake.facts == told_by(talk, sni="localhost", offered=("http/1.1",))
    # The server's hello is its first message: 5 bytes of a record's header, 4 of the message's.
    hello = 5 + 4 + int.from_bytes(talk.sent(from_client=False)[6:9])
    assert hello - piece <= done_after < hello


def test_a_header_and_then_the_rest() -> None:
    talk = Ends(version=TLS12).talk()
    flights = [
        part for from_client, data in talk.flights for part in ((from_client, data[:5]), (from_client, data[5:]))
    ]
    assert facts_of(flights) == told_by(talk, sni="localhost")


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_joined_late_there_are_no_facts(version: ssl.TLSVersion) -> None:
    talk = Ends(version=version).talk()
    late = talk.flights[-2:]
    assert [from_client for from_client, _ in late] == [True, False]
    assert facts_of(late) == Facts()
    cut = [(from_client, data[7:]) for from_client, data in talk.flights]
    assert facts_of(cut) == Facts(), "within the first records"


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_joined_between_the_hellos_the_servers_facts_are_there(version: ssl.TLSVersion) -> None:
    talk = Ends(version=version, offered=["h2"], accepted=["h2"]).talk()
    whole = told_by(talk, sni="localhost", offered=("h2",))
    assert facts_of(talk.flights[1:]) == Facts(
        version=whole.version, cipher=whole.cipher, alpn_selected=whole.alpn_selected
    )


# --- the client's hello -----------------------------------------------------------------------------------------------


def test_a_client_hello_over_several_records_and_messages_in_one_record() -> None:
    hello = client_hello(server_name(b"localhost"), extension(21, bytes(1200)))
    want = Facts(version="1.2", cipher="TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", sni="localhost", client_random=RANDOM)
    pieces = [hello[at : at + 500] for at in range(0, len(hello), 500)]
    assert of_client(*pieces) == want
    together = record(server_hello() + message(11, bytes(3000)) + message(14, b""))
    assert facts_of([(True, b"".join(map(record, pieces))), (False, together)]) == want


def test_grease_is_no_offer_and_no_obstacle() -> None:
    hello = client_hello(
        extension(0x1A1A, b""),
        server_name(b"localhost"),
        protocols(b"\x0a\x0a", b"h2", b"\xfa\xfa", b"http/1.1"),
        extension(0xEAEA, b"\0"),
        ciphers=(0x4A4A, 0x1301),
    )
    facts = of_client(hello)
    assert facts.alpn_offered == ("h2", "http/1.1")
    assert facts.sni == "localhost"


def test_with_ech_the_outer_name_is_what_is_seen() -> None:
    facts = of_client(client_hello(extension(0xFE0D, b"\0" + bytes(40)), server_name(b"public.example")))
    assert facts.sni == "public.example"


def test_an_sslv2_hello_has_no_facts_but_the_server_has() -> None:
    sslv2 = bytes.fromhex("802e0103010015000000100700c0") + bytes(34)
    assert facts_of([(True, sslv2), (False, record(server_hello(version=0x0301, cipher=0x002F)))]) == Facts(
        version="1.0", cipher="TLS_RSA_WITH_AES_128_CBC_SHA"
    )


def test_the_first_of_two_client_hellos_counts() -> None:
    facts = of_client(client_hello(server_name(b"one")), client_hello(server_name(b"two"), random=bytes(32)))
    assert (facts.sni, facts.client_random) == ("one", RANDOM)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (server_name(b"xn--mnchen-3ya.example"), "xn--mnchen-3ya.example"),
        (server_name("münchen.example".encode()), "münchen.example"),
        (server_name(b"caf\xe9"), r"caf\xe9"),
        (server_name(b"one", b"two"), "one"),
        (server_name(b"one") + server_name(b"two"), "one"),
        (server_name(b""), None),
        (server_name(b"a\x1b[2Jb"), None),
        (server_name(b"other", kind=1), None),
        (extension(0, b""), None),
        (extension(0, b"\0"), None),
        (extension(0, b"\0\x0c\0\0\x09local"), None),
    ],
)
def test_the_servers_name(body: bytes, name: str | None) -> None:
    facts = of_client(client_hello(body))
    assert facts.sni == name
    assert facts.client_random == RANDOM


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (protocols(b"h2"), ("h2",)),
        (protocols(b"\xff\xfe", b"a\0b", b"http/1.0"), (r"\xff\xfe", "http/1.0")),
        (protocols(b"h2", b"", b"http/1.1"), ()),
        (extension(16, b"\0\x03\x05h2"), ()),
        (extension(16, b""), ()),
    ],
)
def test_the_clients_offers(body: bytes, names: tuple[str, ...]) -> None:
    assert of_client(client_hello(body)).alpn_offered == names


# --- the server's hello -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "extensions", "version"),
    [
        (0x0300, (), None),
        (0x0301, (), "1.0"),
        (0x0302, (), "1.1"),
        (0x0303, (), "1.2"),
        (0x0303, (SELECTED_13,), "1.3"),
        (0x0303, (extension(43, b"\x7f\x1c"),), None),  # draft 28: neither 1.3 nor 1.2
        (0x0303, (extension(43, b""),), None),
        (0x7F12, (), None),
    ],
)
def test_versions(field: int, extensions: tuple[bytes, ...], version: str | None) -> None:
    facts = of_server(record(server_hello(*extensions, version=field)))
    assert facts.version == version
    assert facts.cipher == "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"


def test_the_servers_protocol_counts_up_to_tls_1_2() -> None:
    assert of_server(record(server_hello(protocols(b"h2")))).alpn_selected == "h2"
    assert of_server(record(server_hello(protocols(b"h2", b"http/1.1")))).alpn_selected is None, "one is selected"
    assert of_server(record(server_hello(SELECTED_13, protocols(b"h2")))).alpn_selected is None, "encrypted there"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (0x1301, "TLS_AES_128_GCM_SHA256"),
        (0x1302, "TLS_AES_256_GCM_SHA384"),
        (0x1303, "TLS_CHACHA20_POLY1305_SHA256"),
        (0x1304, "TLS_AES_128_CCM_SHA256"),
        (0x1305, "TLS_AES_128_CCM_8_SHA256"),
        (0x000A, "TLS_RSA_WITH_3DES_EDE_CBC_SHA"),
        (0x00C6, "TLS_SM4_GCM_SM3"),
        (0xC02F, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
        (0xC016, "TLS_ECDH_anon_WITH_RC4_128_SHA"),
        (0xC070, "TLS_ECDHE_PSK_WITH_ARIA_128_CBC_SHA256"),
        (0xC0AA, "TLS_PSK_DHE_WITH_AES_128_CCM_8"),
        (0xCCA8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
        (0xD001, "TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256"),
        (0x1A1A, None),  # GREASE
        (0x00FF, None),  # a signal, no cipher
        (0xCC13, None),  # a draft's
        (0xFFFE, None),
    ],
)
def test_names_of_ciphers(code: int, name: str | None) -> None:
    facts = of_server(record(server_hello(cipher=code)))
    assert facts.cipher == name
    assert facts.version == "1.2"


def test_a_warning_may_come_before_the_hello_and_a_change_of_cipher_behind_a_retry() -> None:
    warning = record(b"\x01\x70", kind=21)
    assert of_server(warning, record(server_hello())).version == "1.2"
    retry = record(server_hello(SELECTED_13, random=RETRY_RANDOM, cipher=0x1302))
    change = record(b"\x01", kind=20)
    facts = of_server(retry, change, record(server_hello(SELECTED_13, cipher=0x1302)))
    assert (facts.version, facts.cipher) == ("1.3", "TLS_AES_256_GCM_SHA384")


# --- what is no handshake ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET / HTTP/1.1\r\n", id="http"),
        pytest.param(record(bytes(40), kind=23), id="application data"),
        pytest.param(record(bytes(40), kind=20), id="no change of cipher"),
        pytest.param(record(bytes(40), kind=21), id="an encrypted alert"),
        pytest.param(record(bytes(40)), id="an encrypted handshake message"),
        pytest.param(record(b""), id="an empty record"),
        pytest.param(record(server_hello()), id="a server's hello of the client"),
        pytest.param(record(b"\x10" + client_hello()[1:]), id="another message, whatever is in it"),
        pytest.param(record(client_hello(), version=0x0403), id="no such version"),
        pytest.param(b"\x16\x03\x01\x40\x01" + client_hello(), id="a record over the limit"),
        pytest.param(record(b"\x01\xff\xff\xff"), id="a message over our limit"),
        pytest.param(record(message(1, b"\x03\x03")), id="too short"),
        pytest.param(record(message(1, b"\x03\x03" + RANDOM + b"\xff")), id="a session past the end"),
        pytest.param(record(message(1, b"\x03\x03" + RANDOM + b"\0\xff\xff\x13\x01")), id="ciphers past the end"),
    ],
)
def test_what_is_no_hello_is_absent_and_over(data: bytes) -> None:
    server = (False, record(server_hello()))
    want = Facts(version="1.2", cipher="TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256")
    assert facts_of([server, (True, data)]) == want
    assert facts_of([server, (True, data), (True, record(client_hello(server_name(b"localhost"))))]) == want


def test_an_extension_past_the_end_says_nothing() -> None:
    facts = of_client(client_hello(server_name(b"localhost"), b"\0\x10\0\xff\0\x03\x02h2"))
    assert facts == Facts("1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "localhost", ("h2",), None, RANDOM)


def test_the_first_16_kib_are_looked_at() -> None:
    largest = DIRECTION_BYTES_MAX - 5 - len(client_hello(server_name(b"localhost"), extension(21, b"")))
    for padding, sni in ((largest, "localhost"), (largest + 1, None)):
        handshake = Handshake()
        handshake.feed(False, record(server_hello()))
        data = record(client_hello(server_name(b"localhost"), extension(21, bytes(padding))))
        handshake.feed(True, data[:-1])
        assert handshake.done is (sni is None)
        handshake.feed(True, data[-1:])
        assert handshake.done
        assert handshake.facts.sni == sni


def test_alerts_without_end_come_to_an_end() -> None:
    handshake = Handshake()
    handshake.feed(True, record(client_hello()))
    done = []
    for _ in range(DIRECTION_BYTES_MAX // 7 + 1):
        handshake.feed(False, record(b"\x01\x70", kind=21))
        done.append(handshake.done)
    assert done == [False] * (len(done) - 1) + [True]
    assert handshake.facts == Facts(client_random=RANDOM)
