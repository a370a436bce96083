"""Where the two ends of a message are: by process, through NAT, by address; what is not known is not told."""

from __future__ import annotations

from pathlib import Path

import pytest

from netprofiler.containers import places as module
from netprofiler.containers.directory import Containers
from netprofiler.containers.facts import HEADER, TOKEN, Facts
from netprofiler.containers.places import HOLD_NS, Places
from netprofiler.counters import Counters
from netprofiler.exchange import Container, Direction, Fields, Head, Link, Message, Place, PlaceType, Process, Role
from tests.unit.containers.fakes import A, B, FakeProc

C = "c" * 64
NOW = 1_000_000_000
WEB = Container(A, "web")
CLIENT = Container(B, "client")
NET = (("eth0", "000012AC", "0000FFFF"),)  # 172.18.0.0/16


class Scene:
    """Processes 10 (in A), 20 (in B) and 30 (on the host), each in a network namespace of its own but the last."""

    def __init__(self, path: Path) -> None:
        self.proc = FakeProc(path)
        self.proc.add(10, container=A, namespace="web")
        self.proc.add(20, container=B, namespace="client")
        self.proc.add(30)
        self.proc.network(
            1, own=("192.0.2.1", "172.18.0.1"), routes=(("eth0", "000200C0", "00FFFFFF"), ("br-1", *NET[0][1:]))
        )
        self.proc.network(10, own=("172.18.0.2",), routes=NET)
        self.proc.network(20, own=("172.18.0.3",), routes=NET)
        self.containers = Containers((), proc=path, find_sockets=list, read_files=lambda *_: None)
        self.counters = Counters()
        self.places = Places(self.containers, self.counters, path)
        self.now = NOW

    def knows(
        self,
        container: Container,
        address: str = "",
        network: str = "n1",
        *,
        ports: tuple[int, ...] = (),
        host: bool = False,
    ) -> None:
        addresses = ((network, address),) if address else ()
        self.containers._put(Facts(container, {}, addresses, ports, shares_network=host, host_network=host), anew=True)

    def link(self, pid: int, local: str, remote: str, *, role: Role = Role.CLIENT, **more: object) -> Link:
        local_ip, _, local_port = local.partition(":")
        remote_ip, _, remote_port = remote.partition(":")
        link = Link(f"sock:[{pid}{local}]", role, local_ip, int(local_port), remote_ip, int(remote_port))
        link.network_namespace = self.proc.namespace_of(pid)
        link.process = Process(pid, 0, "name", "name")
        for name, value in more.items():
            setattr(link, name, value)
        self.places.opened([link])
        return link

    def send(
        self, link: Link, direction: Direction = Direction.SEND, headers: tuple[tuple[str, str], ...] = ()
    ) -> Message:
        assert link.process is not None
        head = Head(True, "HTTP/1.1", "GET", "/", 0, "", Fields(headers, None, False, False, (), False, ""), "", 20, 0)
        process = link.process
        return Message(link, direction, head, process, process.pid, 1, self.now, self.now, 1, 0, 20, b"", 0)

    def told(self, message: Message) -> tuple[Place | None, Place | None]:
        """This end and the other, when nothing more is waited for."""
        out = self.places.take([message], self.now)
        if not out:
            self.now += HOLD_NS + 1
            out = self.places.take([], self.now)
        assert out == [message]
        assert message.process is not None
        return message.process.place, message.link.remote


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def a_container(container: Container) -> Place:
    return Place(PlaceType.CONTAINER, container)


HOST = Place(PlaceType.HOST)
EXTERNAL = Place(PlaceType.EXTERNAL)


def test_both_ends_are_told_by_their_processes(scene: Scene) -> None:
    scene.knows(WEB)
    scene.knows(CLIENT)
    server = scene.link(10, "172.18.0.2:80", "172.18.0.3:5000", role=Role.SERVER, beginning=(7, 9))
    client = scene.link(20, "172.18.0.3:5000", "172.18.0.2:80", beginning=(9, 7))
    assert scene.told(scene.send(client)) == (a_container(CLIENT), a_container(WEB))
    assert scene.told(scene.send(server, Direction.RECV)) == (a_container(WEB), a_container(CLIENT))


def test_a_translated_address_does_not_hide_the_other_end(scene: Scene) -> None:
    scene.knows(WEB)
    scene.link(10, "172.18.0.2:80", "172.18.0.1:7777", role=Role.SERVER, beginning=(7, 9))
    client = scene.link(30, "192.0.2.1:5000", "192.0.2.1:8080", beginning=(9, 7))
    assert scene.told(scene.send(client)) == (HOST, a_container(WEB))


def test_equal_addresses_in_two_namespaces_are_told_apart(scene: Scene) -> None:
    """Two pairs with the same addresses and ports: what their sequence numbers say counts."""
    for pid, container in ((40, C), (50, "d" * 64)):
        scene.proc.add(pid, container=container, namespace=f"n{pid}")
        scene.proc.network(pid, own=("172.18.0.2",), routes=NET)
        scene.knows(Container(container, f"web-{pid}"), "172.18.0.2", f"net-{pid}")
    scene.link(40, "172.18.0.2:80", "172.18.0.3:5000", role=Role.SERVER, beginning=(1, 2))
    scene.link(50, "172.18.0.2:80", "172.18.0.3:5000", role=Role.SERVER, beginning=(3, 4))
    first = scene.link(20, "172.18.0.3:5000", "172.18.0.2:80", beginning=(2, 1))
    second = scene.link(20, "172.18.0.3:5000", "172.18.0.2:80", beginning=(4, 3))
    joined = scene.link(20, "172.18.0.3:5000", "172.18.0.2:80", beginning=(8, 8))
    names = [scene.told(scene.send(link))[1] for link in (first, second, joined)]
    assert names == [a_container(Container(C, "web-40")), a_container(Container("d" * 64, "web-50")), None]


def test_a_connection_that_was_joined_late_is_told_by_addresses_if_only_one_has_them(scene: Scene) -> None:
    scene.knows(WEB)
    scene.link(10, "172.18.0.2:80", "172.18.0.3:5000", role=Role.SERVER)
    client = scene.link(20, "172.18.0.3:5000", "172.18.0.2:80")
    assert scene.told(scene.send(client))[1] == a_container(WEB)
    scene.link(30, "172.18.0.2:80", "172.18.0.3:6000", role=Role.SERVER)
    scene.link(10, "172.18.0.2:80", "172.18.0.3:6000", role=Role.SERVER)
    scene.knows(WEB, "172.18.0.2", "n9")  # and by address nobody in its network has it
    assert scene.told(scene.send(scene.link(20, "172.18.0.3:6000", "172.18.0.2:80")))[1] is None


def test_an_end_that_is_not_seen_is_told_by_address_in_a_common_network(scene: Scene) -> None:
    scene.knows(CLIENT, "172.18.0.3", "n1")
    scene.knows(WEB, "172.18.0.2", "n1")
    scene.knows(Container(C, "elsewhere"), "172.18.0.2", "n2")
    assert scene.told(scene.send(scene.link(20, "172.18.0.3:1", "172.18.0.2:80")))[1] == a_container(WEB)
    assert scene.told(scene.send(scene.link(30, "172.18.0.1:1", "172.18.0.2:80")))[1] is None, "two have it"
    assert scene.told(scene.send(scene.link(20, "172.18.0.3:2", "172.18.0.9:80")))[1] is None, (
        "nobody is known to have it"
    )


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("203.0.113.9:443", EXTERNAL),
        ("192.0.2.77:443", EXTERNAL),  # a neighbour of the host's own network
        ("172.18.0.77:80", None),  # behind a bridge, and not known
        ("192.0.2.1:22", HOST),
        ("127.0.0.1:22", HOST),
        ("192.0.2.1:8080", a_container(WEB)),
        ("127.0.0.1:8080", a_container(WEB)),
    ],
)
def test_from_the_host_addresses_are_the_host_a_published_port_or_external(
    scene: Scene, remote: str, expected: Place | None
) -> None:
    scene.knows(WEB, "172.18.0.2", ports=(8080,))
    assert scene.told(scene.send(scene.link(30, "192.0.2.1:1", remote))) == (HOST, expected)


@pytest.mark.parametrize(
    ("remote", "expected"),
    [
        ("203.0.113.9:443", EXTERNAL),
        ("172.18.0.1:22", HOST),
        ("192.0.2.1:22", HOST),
        ("127.0.0.1:80", a_container(WEB)),
        ("172.18.0.2:80", a_container(WEB)),
    ],
)
def test_from_a_container_its_own_addresses_are_itself(scene: Scene, remote: str, expected: Place) -> None:
    scene.knows(WEB, "172.18.0.2")
    assert scene.told(scene.send(scene.link(10, "172.18.0.2:1", remote))) == (a_container(WEB), expected)


def test_where_a_container_has_the_hosts_network_loopback_tells_nothing(scene: Scene) -> None:
    scene.knows(Container(C, "on-host"), host=True)
    assert scene.told(scene.send(scene.link(30, "127.0.0.1:1", "127.0.0.1:80"))) == (HOST, None)


def test_a_container_that_is_gone_is_told_by_its_network_namespace(scene: Scene) -> None:
    scene.knows(WEB)
    namespace = scene.proc.namespace_of(10)
    scene.containers._by_namespace[namespace] = A
    link = scene.link(10, "172.18.0.2:1", "203.0.113.9:80")
    scene.proc.remove(10)
    assert scene.told(scene.send(link))[0] == a_container(WEB)
    scene.containers._end(A)
    late = scene.link(
        20, "172.18.0.2:2", "203.0.113.9:80", process=Process(10, 0, "x", "x"), network_namespace=namespace
    )
    scene.now = 1 << 62
    assert scene.told(scene.send(late))[0] is None, "the namespace's number may be another's by now"


def test_messages_wait_for_the_other_end_in_order_and_not_for_ever(scene: Scene) -> None:
    scene.knows(WEB)
    client = scene.link(20, "172.18.0.3:5000", "172.18.0.2:80", beginning=(9, 7))
    other = scene.link(20, "172.18.0.3:5001", "203.0.113.9:80", beginning=(5, 5))
    messages = [scene.send(client), scene.send(other), scene.send(client)]
    assert scene.places.take(messages[:2], NOW) == []
    assert scene.places.take(messages[2:], NOW + 1) == []
    scene.link(10, "172.18.0.2:80", "172.18.0.3:5000", role=Role.SERVER, beginning=(7, 9))
    assert scene.places.take([], NOW + 2) == messages[:1], "the next one's other end is not known yet"
    assert client.remote == a_container(WEB)
    assert scene.places.waiting
    assert scene.places.take([], NOW + HOLD_NS + 3) == messages[1:]
    assert other.remote == EXTERNAL
    assert scene.places.take([scene.send(client)], NOW)[0].link.remote == a_container(WEB)


def test_no_more_wait_than_there_is_room_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_MAX", 3)
    links = [scene.link(20, f"172.18.0.3:{port}", "203.0.113.9:80") for port in range(1, 11)]
    messages = [scene.send(link) for link in links]
    assert scene.places.take(messages, NOW) == []
    assert scene.places.take([], NOW) == messages[:7]
    assert scene.places.drain() == messages[7:]
    assert not scene.places.waiting


def test_ends_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDS_MAX", 10)
    for port in range(1, 100):
        scene.link(20, f"172.18.0.3:{port}", "172.18.0.2:80", beginning=(port, port))
    assert len(scene.places._by_beginning) == len(scene.places._by_addresses) == 10


def test_what_is_learnt_later_is_told_from_then_on(scene: Scene) -> None:
    link = scene.link(10, "172.18.0.2:1", "203.0.113.9:80")
    assert scene.told(scene.send(link))[0] == a_container(Container(A))
    link.rendered[1] = ("text",)
    scene.knows(WEB)
    assert scene.told(scene.send(link))[0] == a_container(WEB)
    assert link.rendered == {}


def test_our_own_requests_to_an_engine_are_nobodys_traffic(scene: Scene) -> None:
    link = Link("sock:[1]", Role.SERVER, unix_path="/run/docker.sock", process=Process(30, 0, "dockerd", "dockerd"))
    request = scene.send(link, Direction.RECV, ((HEADER, TOKEN),))
    response = scene.send(link)
    response.head.is_request = False
    response.request = request
    others = scene.send(link, Direction.RECV, ((HEADER, "guessed"),))
    assert scene.places.take([request, response, others], NOW) == [others]
    assert scene.counters.not_wanted == 2


def test_a_message_of_a_process_that_nobody_knows_is_told_nothing_of(scene: Scene) -> None:
    link = scene.link(10, "172.18.0.2:1", "172.18.0.2:80")
    message = scene.send(link)
    message.process = None
    assert scene.places.take([message], NOW) == []
    assert scene.places.take([], NOW + HOLD_NS + 1) == [message]
    assert link.remote is None
