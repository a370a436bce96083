"""netprofiler.sinks.files: what is written is whole, old files are kept, and a file that fails is tried again."""

from __future__ import annotations

import errno
import gzip
import os
import stat
import time
from pathlib import Path

import pyrage
import pytest
import zstandard

from netprofiler.errors import CommandError
from netprofiler.sinks import files
from netprofiler.sinks.files import EncryptedFile, OutputFile, Rotation, mend, open_output

IDENTITY = pyrage.x25519.Identity.generate()
RECIPIENT = str(IDENTITY.to_public())


def line(number: int, size: int = 100) -> bytes:
    return f'{{"timestamp":"{number}"'.encode().ljust(size - 2, b" ") + b"}\n"


def open_file(path: Path, rotation: Rotation | None = None) -> tuple[OutputFile, list[str]]:
    warnings: list[str] = []
    return OutputFile(str(path), rotation, warnings.append), warnings


def decrypted(path: Path) -> bytes:
    return bytes(pyrage.decrypt(path.read_bytes(), [IDENTITY]))


def unpacked(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.decompress(data)
    if compression == "zstd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


# ---- opening ----


def test_the_file_is_made_private(tmp_path: Path) -> None:
    os.close(open_output(str(tmp_path / "a")))
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["symbolic link", "directory", "hard link", "another user", "another netprofiler"])
def test_what_could_be_somebody_elses_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a"
    held = -1
    if what == "symbolic link":
        path.symlink_to(tmp_path / "b")
    elif what == "directory":
        path.mkdir()
    elif what == "hard link":
        (tmp_path / "b").write_text("b")
        os.link(tmp_path / "b", path)
    elif what == "another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        path.write_text("")
        os.chown(path, 12345, 12345)
    else:
        held = open_output(str(path))
    with pytest.raises(CommandError, match=what) as raised:
        open_output(str(path))
    assert raised.value.exit_code == 2
    if held >= 0:
        os.close(held)
        os.close(open_output(str(path)))


def test_devices_may_be_written(tmp_path: Path) -> None:
    os.close(open_output("/dev/null"))


# ---- mending ----


@pytest.mark.parametrize("broken", [0, 1, 5, 20, 99])
def test_a_line_that_broke_off_is_cut_off_at_the_next_start(tmp_path: Path, broken: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(line(1) + line(2) + line(3)[:broken])
    file, warnings = open_file(path)
    assert file.write(line(4)) == 100
    file.close()
    assert path.read_bytes() == line(1) + line(2) + line(4)
    assert len(warnings) == (1 if broken else 0)


def test_a_first_line_that_broke_off_and_one_longer_than_a_block(tmp_path: Path) -> None:
    for before in (b"", line(1)):
        path = tmp_path / "a"
        path.write_bytes(before + line(2, 3 * files._BLOCK_BYTES)[:-1])
        descriptor = open_output(str(path))
        assert mend(descriptor) == 3 * files._BLOCK_BYTES - 1
        os.close(descriptor)
        assert path.read_bytes() == before


def test_what_somebody_else_wrote_is_ended_and_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"my notes")
    file, _ = open_file(path)
    file.write(line(1))
    file.close()
    assert path.read_bytes() == b"my notes\n" + line(1)


# ---- failing, and going on ----


def limit_disk(monkeypatch: pytest.MonkeyPatch, size: int) -> list[int]:
    """The disk has so much room; what is left is in the list, to be changed."""
    real, room = os.write, [size]

    def write(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, bytes(data)[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)
    return room


def test_a_full_disk_keeps_whole_lines_and_is_written_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = open_file(tmp_path / "a")
    room = limit_disk(monkeypatch, 250)
    assert file.write(line(1) + line(2) + line(3)) == 200
    assert "No space" in str(file.failure)
    assert file.write(line(4)) == 0
    room[0] = 10_000
    assert file.write(line(5)) == 100
    assert not file.failure
    assert (tmp_path / "a").read_bytes() == line(1) + line(2) + line(5)


def test_a_file_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    file, warnings = open_file(tmp_path / "a")
    file.write(line(1))
    (tmp_path / "a").unlink()
    file.write(line(2))
    assert (tmp_path / "a").read_bytes() == line(2)
    assert "removed" in warnings[0]


def test_a_file_that_was_moved_is_written_until_it_is_opened_again(tmp_path: Path) -> None:
    file, _ = open_file(tmp_path / "a")
    file.write(line(1))
    (tmp_path / "a").rename(tmp_path / "b")
    file.write(line(2))
    file.reopen()
    file.reopen()
    file.write(line(3))
    assert (tmp_path / "b").read_bytes() == line(1) + line(2)
    assert (tmp_path / "a").read_bytes() == line(3)


# ---- rotation ----


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_old_files_are_kept_in_order_and_compressed(tmp_path: Path, compression: str) -> None:
    rotation = Rotation(size_bytes=250, keep=3, compression=compression)
    file, warnings = open_file(tmp_path / "a", rotation)
    for number in range(12):
        file.write(line(number))
        file._old.close()  # else a rotation waits for the compression before it
    file.close()
    suffix = files.COMPRESSIONS[compression]
    assert sorted(os.listdir(tmp_path)) == ["a", *(f"a.{number}{suffix}" for number in (1, 2, 3))]
    found = [unpacked((tmp_path / f"a.{number}{suffix}").read_bytes(), compression) for number in (3, 2, 1)]
    assert b"".join([*found, (tmp_path / "a").read_bytes()]) == b"".join(map(line, range(4, 12)))
    for name in os.listdir(tmp_path):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert not warnings


def test_more_than_fits_into_one_file_is_in_several(tmp_path: Path) -> None:
    file, _ = open_file(tmp_path / "a", Rotation(size_bytes=250, compression="none"))
    long = line(7, 400)
    assert file.write(b"".join(map(line, range(7))) + long + line(8)) == 1200
    file.close()
    found = [(tmp_path / name).read_bytes() for name in sorted(os.listdir(tmp_path), reverse=True)]
    assert b"".join(found) == b"".join(map(line, range(7))) + long + line(8)
    assert [len(each) for each in found] == [200, 200, 200, 100, 400, 100]


def test_a_file_that_is_old_enough_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = open_file(tmp_path / "a", Rotation(age_seconds=60, compression="none"))
    file.write(line(1))
    now = time.monotonic()
    monkeypatch.setattr("netprofiler.sinks.files.time.monotonic", lambda: now + 61)
    file.write(line(2))
    assert (tmp_path / "a.1").read_bytes() == line(1)
    assert (tmp_path / "a").read_bytes() == line(2)


def test_what_cannot_be_rotated_goes_on_growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, warnings = open_file(tmp_path / "a", Rotation(size_bytes=150))

    def rename(*_: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "rename", rename)
    for number in range(3):
        assert file.write(line(number)) == 100
    assert (tmp_path / "a").read_bytes() == b"".join(map(line, range(3)))
    assert "Read-only" in warnings[0]


def test_a_compression_that_was_interrupted_leaves_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "a.1").write_bytes(line(1))
    (tmp_path / "a.1.unfinished").write_bytes(b"half")
    open_file(tmp_path / "a")[0].close()
    assert sorted(os.listdir(tmp_path)) == ["a", "a.1"]


# ---- encryption ----


def test_an_encrypted_file_is_for_its_recipient_alone(tmp_path: Path) -> None:
    warnings: list[str] = []
    path = tmp_path / "a"
    file = EncryptedFile(str(path), [RECIPIENT], None, warnings.append)
    for number in range(2000):
        assert file.write(line(number)) == 100
    file.close()
    assert file.take_lost() == 0
    assert decrypted(path) == b"".join(map(line, range(2000)))
    assert b"timestamp" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(path.read_bytes(), [pyrage.x25519.Identity.generate()])
    # The next start begins a new one.
    again = EncryptedFile(str(path), [RECIPIENT], None, warnings.append)
    again.write(line(1))
    again.close()
    assert decrypted(path) == line(1)
    assert len(decrypted(tmp_path / "a.1")) == 200_000
    assert not warnings


def test_encrypted_files_are_rotated(tmp_path: Path) -> None:
    file = EncryptedFile(str(tmp_path / "a"), [RECIPIENT], Rotation(size_bytes=100_000, keep=9), lambda _: None)
    for number in range(30):
        file.write(line(number, 10_000))
    file.close()
    names = sorted(os.listdir(tmp_path), reverse=True)
    assert len(names) >= 3
    assert b"".join(decrypted(tmp_path / name) for name in names) == b"".join(line(n, 10_000) for n in range(30))


def test_a_full_disk_under_an_encrypted_file_is_counted_to_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    warnings: list[str] = []
    file = EncryptedFile(str(path), [RECIPIENT], Rotation(keep=3), warnings.append)
    room = limit_disk(monkeypatch, 150_000)
    taken = lost = 0
    for number in range(300):
        taken += file.write(line(number, 1000)) // 1000
        lost += file.take_lost()
    # Two chunks are whole: 131,072 bytes, so 131 lines.
    assert taken - lost == 131
    room[0] = 10_000_000
    monkeypatch.setattr("netprofiler.sinks.files.RETRY_SECONDS", 0.0)
    file._retry_at = 0.0
    for number in range(300, 310):
        assert file.write(line(number, 1000)) == 1000
    file.close()
    assert file.take_lost() == 0
    assert decrypted(path) == b"".join(line(number, 1000) for number in range(300, 310))
    assert sorted(os.listdir(tmp_path)) == ["a", "a.1"]


def test_the_last_chunk_that_finds_no_room_is_lost_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = EncryptedFile(str(tmp_path / "a"), [RECIPIENT], None, lambda _: None)
    assert file.write(line(1) + line(2)) == 200

    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write)
    file.close()
    assert file.take_lost() == 2


def test_recipients_and_outputs_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="--encrypt-to age1nobody") as raised:
        EncryptedFile(str(tmp_path / "a"), ["age1nobody"], None, lambda _: None)
    assert raised.value.exit_code == 2
    with pytest.raises(CommandError, match="standard output"):
        EncryptedFile("-", [RECIPIENT], None, lambda _: None)
