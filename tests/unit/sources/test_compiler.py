"""sources/compiler.py: what is kept comes back as it was, and only when nobody else can have written it."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from netprofiler.sources import compiler
from netprofiler.sources.bpf import MapFacts, Object
from netprofiler.sources.compiler import OBJECTS_KEPT, ObjectCache, cache_directory, object_key

MADE = Object(
    (MapFacts("events", 27, 0, 0, 1 << 24, 0), MapFacts("connections", 9, 8, 96, 131_072, 0)),
    {"on_exit": bytes(range(64)), "on_sys_exit": b"\x18\x11\0\0\1\0\0\0" + bytes(8)},
    variant=1,
)
OTHER = Object((), {"on_exit": bytes(8)})
KEY = "0123456789abcdef" * 4
OTHERS_UID = 65534


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(directory: Path) -> ObjectCache:
    """With MADE in it."""
    cache = ObjectCache(directory)
    cache.write(KEY, MADE)
    return cache


def test_what_is_kept_comes_back(cache: ObjectCache, directory: Path) -> None:
    assert cache.read(KEY) == MADE
    assert ObjectCache(directory).read(KEY) == MADE
    assert cache.read(KEY.replace("0", "1")) is None
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in directory.iterdir()] == [f"{KEY}.json"]
    assert (directory / f"{KEY}.json").stat().st_mode & 0o777 == 0o600


def test_the_newest_stay(cache: ObjectCache, directory: Path) -> None:
    keys = [hashlib.sha256(bytes([number])).hexdigest() for number in range(OBJECTS_KEPT)]
    left_over = directory / f"{KEY}.0123456789abcdef.new"
    left_over.write_bytes(b"half of one")
    for age, path in enumerate((directory / f"{KEY}.json", left_over)):
        os.utime(path, ns=(age, age))
    (directory / "README").write_text("not ours to remove")
    for number, key in enumerate(keys):
        cache.write(key, MADE)
        os.utime(directory / f"{key}.json", ns=(10 + number, 10 + number))
    assert {path.name for path in directory.iterdir()} == {"README", *(f"{key}.json" for key in keys)}


def replaced_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replaced_by_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nonexistent/object")


def replaced_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def with_content(content: object) -> Callable[[Path], None]:
    """Whole, by its checksum."""

    def write(path: Path) -> None:
        data = orjson.dumps(content)
        path.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

    return write


ODD: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "one bit": lambda path: path.write_bytes(path.read_bytes().replace(b'"variant":1', b'"variant":0')),
    "no JSON": lambda path: path.write_bytes(hashlib.sha256(b"{").hexdigest().encode() + b"\n{"),
    "a list": with_content([]),
    "no programs": with_content({"maps": [], "variant": 0}),
    "no numbers": with_content({"maps": [], "programs": {}, "variant": None}),
    "another kind of map": with_content({"maps": [{"name": "events", "color": 1}], "programs": {}, "variant": 0}),
    "no base64": with_content({"maps": [], "programs": {"on_exit": "*"}, "variant": 0}),
    "half an instruction": with_content({"maps": [], "programs": {"on_exit": "AAAA"}, "variant": 0}),
    "group-writable": lambda path: path.chmod(0o620),
    "writable for all": lambda path: path.chmod(0o602),
    "a link": replaced_by_link,
    "a link to nothing": replaced_by_link_to_nothing,
    "a FIFO": replaced_by_fifo,
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_not_used_and_is_replaced(cache: ObjectCache, directory: Path, odd: str) -> None:
    ODD[odd](directory / f"{KEY}.json")
    assert cache.read(KEY) is None
    cache.write(KEY, MADE)
    assert cache.read(KEY) == MADE
    assert not (directory / f"{KEY}.json").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_file_is_not_used_and_is_replaced(cache: ObjectCache, directory: Path) -> None:
    os.chown(directory / f"{KEY}.json", OTHERS_UID, -1)
    assert cache.read(KEY) is None
    cache.write(KEY, MADE)
    assert cache.read(KEY) == MADE
    assert (directory / f"{KEY}.json").stat().st_uid == 0


def test_a_link_leads_no_write_astray(cache: ObjectCache, directory: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (directory / f"{KEY}.json").unlink()
    (directory / f"{KEY}.json").symlink_to(victim)
    cache.write(KEY, MADE)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_write_to_is_not_used(cache: ObjectCache, directory: Path, mode: int) -> None:
    directory.chmod(mode)
    before = (directory / f"{KEY}.json").read_bytes()
    assert cache.read(KEY) is None
    cache.write(KEY, OTHER)
    assert (directory / f"{KEY}.json").read_bytes() == before
    directory.chmod(0o755)  # as systemd makes it
    assert cache.read(KEY) == MADE


def test_a_directory_of_somebody_else_is_not_used(
    cache: ObjectCache, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHERS_UID)
    assert cache.read(KEY) is None
    cache.write(KEY.replace("0", "1"), OTHER)
    assert [path.name for path in directory.iterdir()] == [f"{KEY}.json"]


def test_a_linked_directory_is_not_used(cache: ObjectCache, directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to("elsewhere")
    assert cache.read(KEY) is None
    cache.write(KEY.replace("0", "1"), OTHER)
    assert [path.name for path in directory.iterdir()] == [f"{KEY}.json"]


@pytest.mark.parametrize("name", ["file/cache", "no/such/directory", "file"])
def test_where_nothing_can_be_kept_nothing_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("no directory")
    cache = ObjectCache(tmp_path / name)
    cache.write(KEY, MADE)
    assert cache.read(KEY) is None
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_one(cache: ObjectCache, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    cache.write(KEY, OTHER)
    assert cache.read(KEY) == MADE
    assert [path.name for path in directory.iterdir()] == [f"{KEY}.json"]


def test_the_key_is_all_that_the_object_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = tmp_path / "include" / "linux" / "types.h"
    header.parent.mkdir(parents=True)
    header.write_text("typedef int u32;\n")
    keys = [
        object_key("text", ["-DA=1"], tmp_path),
        object_key("text ", ["-DA=1"], tmp_path),
        object_key("text", ["-DA=2"], tmp_path),
        object_key("text", ["-DA=1", "-DB"], tmp_path),
        object_key("-DA=1", ["text"], tmp_path),
    ]
    assert object_key("text", ["-DA=1"], tmp_path) == keys[0]
    header.write_text("typedef unsigned u32;\n")
    keys.append(object_key("text", ["-DA=1"], tmp_path))
    for name in ("machine", "release", "version"):
        monkeypatch.setattr(platform, name, lambda: "another")
        keys.append(object_key("text", ["-DA=1"], tmp_path))
    monkeypatch.setattr(compiler, "FORMAT", compiler.FORMAT + 1)
    keys.append(object_key("text", ["-DA=1"], tmp_path))
    assert len(set(keys)) == len(keys) == 10


@pytest.mark.parametrize(
    ("given", "directory"),
    [
        (None, "/var/cache/netprofiler"),
        ("", "/var/cache/netprofiler"),
        ("relative", "/var/cache/netprofiler"),
        ("/var/cache/mine", "/var/cache/mine"),
        ("/var/cache/one:/var/cache/two", "/var/cache/one"),
    ],
)
def test_where_objects_are_kept(monkeypatch: pytest.MonkeyPatch, given: str | None, directory: str) -> None:
    if given is None:
        monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    else:
        monkeypatch.setenv("CACHE_DIRECTORY", given)
    assert str(cache_directory()) == directory
