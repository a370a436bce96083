"""gRPC bodies as JSON, by what `--proto` names: descriptor sets, as ``protoc --descriptor_set_out`` writes them.

Contract: `Descriptors` reads its files when it is made, and raises `CommandError` for what is none. `decode` does no I/O
and never raises: a body that is not, message by message, what the descriptors say gives None. The JSON is that of the
ProtoJSON format (names in lowerCamelCase, 64-bit numbers and bytes as strings), without the values of secret fields.

A descriptor set need not agree with another: each has a pool of its own, and a method is looked for in the order of the
files. Secrets are found by name: fields, and keys of maps, alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from graphlib import TopologicalSorter
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import Error as JsonError
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from netprofiler.content import decode as decode_content
from netprofiler.errors import CommandError, ExitCode
from netprofiler.exchange import Grpc
from netprofiler.protocols.grpc import PREFIX_BYTES
from netprofiler.redaction import PLACEHOLDER, Redactor

FILE_MAX_BYTES: Final = 64 * 1024 * 1024
"""Of a descriptor set; that of all of Google's APIs is half of it."""
DECODED_MAX_BYTES: Final = 1024 * 1024
"""Protobuf of one record that is decoded, whatever the body limit: it is what a record may cost in time."""
TEXT_GROWTH_MAX: Final = 16
"""JSON may be so many times as large as the body limit; usual messages grow to the double. What becomes larger stays as it is."""
_REMEDY: Final = "write it by `protoc --include_imports --descriptor_set_out=FILE NAME.proto`"
# What parsing and printing raise for odd bytes: an Any of an unknown type, a time out of range, messages inside of messages.
_UNREADABLE: Final = (DecodeError, JsonError, TypeError, ValueError, LookupError, OverflowError, RecursionError)


class Decoded(NamedTuple):
    """What is known of a body."""

    text: str
    """JSON: an object, or an array of objects where this side of the method is a stream."""
    whole: bool
    """No limit of ours cut it."""
    redacted: tuple[str, ...]
    """Names of the fields whose value was replaced."""


class Descriptors:
    """The methods of descriptor sets. `paths`: the files."""

    def __init__(self, paths: Iterable[str], redactor: Redactor) -> None:
        self._redactor = redactor
        self._methods: dict[str, MethodDescriptor] = {}
        for path in paths:
            for name, method in _read(path).items():
                self._methods.setdefault(name, method)

    def decode(self, grpc: Grpc, body: bytes, *, is_request: bool, cut: bool, limit: int) -> Decoded | None:
        """One direction's length-prefixed messages, from the first on → JSON. `cut`: more of them may have followed than was
        kept. `limit`: bytes that compressed messages may become together. None: not known, or not what it should be.
        """
        method = self._methods.get(f"{grpc.service}/{grpc.method}")
        if method is None:
            return None
        limit = min(limit, DECODED_MAX_BYTES)
        unframed = _unframe(body, grpc.encoding, limit)
        if unframed is None:
            return None
        payloads, rest, fits = unframed
        is_stream = method.client_streaming if is_request else method.server_streaming
        if (rest and not cut and fits) or not payloads or (not is_stream and (len(payloads) > 1 or rest)):
            return None
        descriptor = method.input_type if is_request else method.output_type
        pool = method.containing_service.file.pool
        secrets: dict[str, None] = {}
        try:
            make = GetMessageClass(descriptor)
            shown = [
                self._without_secrets(MessageToDict(make.FromString(payload), descriptor_pool=pool), secrets)
                for payload in payloads
            ]
            text = json.dumps(shown if is_stream else shown[0], ensure_ascii=False, separators=(",", ":"))
        except _UNREADABLE:
            return None
        if len(text) > limit * TEXT_GROWTH_MAX:
            return None
        return Decoded(text, fits, tuple(secrets))

    def _without_secrets(self, value: Any, secrets: dict[str, None]) -> Any:
        """What JSON is made of, changed in place; names of secrets are added to `secrets`."""
        if isinstance(value, dict):
            for name, member in value.items():
                if self._redactor.is_secret_field(name):
                    value[name] = PLACEHOLDER
                    secrets[name] = None
                else:
                    self._without_secrets(member, secrets)
        elif isinstance(value, list):
            for member in value:
                self._without_secrets(member, secrets)
        return value


def _unframe(body: bytes, encoding: str, limit: int) -> tuple[list[bytes], int, bool] | None:
    """Length-prefixed messages → those that are whole, how many bytes follow them, and whether they fit into the limit."""
    payloads: list[bytes] = []
    at, room = 0, limit
    while at + PREFIX_BYTES <= len(body):
        compressed = body[at]
        end = at + PREFIX_BYTES + int.from_bytes(body[at + 1 : at + PREFIX_BYTES], "big")
        if compressed > 1:
            return None
        if end > len(body):
            break
        payload = body[at + PREFIX_BYTES : end]
        fits = len(payload) <= room
        if fits and compressed:
            decoded = decode_content(payload, (encoding,), room)
            if decoded is None:
                return None
            payload, fits = decoded
        if not fits:
            return payloads, len(body) - at, False
        payloads.append(payload)
        room -= len(payload)
        at = end
    return payloads, len(body) - at, True


def _read(path: str) -> dict[str, MethodDescriptor]:
    """A descriptor set → its methods, by ``package.Service/Method``."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"--proto {path}: {error.strerror}", ExitCode.USAGE) from error
    try:
        if len(data) > FILE_MAX_BYTES:
            raise DecodeError(f"more than {FILE_MAX_BYTES} bytes")
        files = {file.name: file for file in FileDescriptorSet.FromString(data).file}
    except DecodeError as error:
        raise CommandError(f"--proto {path}: no descriptor set: {error}", ExitCode.USAGE, remedy=_REMEDY) from error
    pool = DescriptorPool()
    # Each file behind those that it imports: not every writer of descriptor sets puts them in that order.
    imports = {name: [other for other in file.dependency if other in files] for name, file in files.items()}
    try:
        for name in TopologicalSorter(imports).static_order():
            pool.AddSerializedFile(files[name].SerializeToString())
    except (TypeError, ValueError) as error:
        raise CommandError(f"--proto {path}: {error}", ExitCode.USAGE, remedy=_REMEDY) from error
    methods = {
        f"{service.full_name}/{method.name}": method
        for name in files
        for service in pool.FindFileByName(name).services_by_name.values()
        for method in service.methods
    }
    if not methods:
        raise CommandError(f"--proto {path}: there is no service in it", ExitCode.USAGE, remedy=_REMEDY)
    return methods
