"""JSON Lines: one record a message, as docs/record.md says (and netprofiler/record.schema.json).

Contract: `RecordWriter.render` makes one line; `JsonLines` writes them to a file or to standard output. Key order is
fixed, a key that does not apply is absent.

A line is a join of fragments, most of them made once: per connection and direction (process, addresses), per block of
header fields, per head. What is made per message is the time, the ids, the counts and the body.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import Final, NamedTuple

from netprofiler.content import decode
from netprofiler.counters import Counters
from netprofiler.errors import CommandError, ExitCode
from netprofiler.exchange import Completeness, Direction, Fields, Head, Link, Message, Role
from netprofiler.redaction import PLACEHOLDER, Redactor
from netprofiler.sinks.base import OutputClosed

_DIRECTIONS: Final = ("send", "recv")
_quote: Callable[[str], str] = encode_basestring


class _FieldsText(NamedTuple):
    headers: str
    """``,"headers":{…}`` or nothing."""
    raw: str
    """The block inside a JSON string."""
    redacted: tuple[str, ...]


class _HeadText(NamedTuple):
    before_body: str
    """``,"protocol":…`` up to the body."""
    headers: str
    raw: str
    """``,"raw_payload":"…`` up to the body, or nothing."""
    redacted: str
    """``,"redacted":[…]`` or nothing."""


def _object(pairs: tuple[tuple[str, str], ...]) -> str:
    """Names and values → a JSON object; a name that comes again gives an array, in order."""
    merged: dict[str, list[str]] = {}
    for name, value in pairs:
        merged.setdefault(name, []).append(value)
    members = (
        f"{_quote(name)}:" + (_quote(values[0]) if len(values) == 1 else f"[{','.join(map(_quote, values))}]")
        for name, values in merged.items()
    )
    return f"{{{','.join(members)}}}"


def _host(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def hop_prefix(link: Link, direction: int) -> str:
    """``sender>receiver@``, to which the sequence number is added; empty where positions name nothing."""
    if not link.positions_are_sequence_numbers or link.local_ip is None or link.remote_ip is None:
        return ""
    local, remote = _host(link.local_ip, link.local_port), _host(link.remote_ip, link.remote_port)
    return f"{local}>{remote}@" if direction == Direction.SEND else f"{remote}>{local}@"


def decoded_body(message: Message, limit: int) -> tuple[bytes, bool]:
    """The body without its content codings, as far as it was kept, and whether a limit of ours cut it."""
    codings = message.head.fields.content_encoding
    if not codings or not message.body:
        return message.body, False
    decoded = decode(message.body, codings, limit)
    return (message.body, False) if decoded is None else (decoded[0], not decoded[1])


def body_text(body: bytes, cut: bool) -> str | None:
    """The body as text, or None. A character that the limit cut at the end is dropped."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        if cut and error.start > len(body) - 4 and error.reason == "unexpected end of data":
            return body[: error.start].decode()
        return None


class RecordWriter:
    """Messages → lines (without the newline). `wall_offset_ns`: what makes wall clock of the records' time."""

    def __init__(self, redactor: Redactor, *, wall_offset_ns: int, body_limit: int, raw_payload: bool) -> None:
        self.wall_offset_ns = wall_offset_ns
        self._redactor = redactor
        self._body_limit = body_limit
        self._raw_payload = raw_payload
        self._second = -1
        self._second_text = ""

    def render(self, message: Message) -> str:
        wall_ns = message.time_ns + self.wall_offset_ns
        second, nanoseconds = divmod(wall_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).strftime('{"timestamp":"%Y-%m-%dT%H:%M:%S.')
        link = message.link
        direction = message.direction
        key = (direction, message.process, message.pid) if message.process is None else (direction, message.process.pid)
        ends = link.rendered.get(key)
        if ends is None or ends[0] is not message.process:  # type: ignore[index]
            ends = (message.process, self._ends(message), hop_prefix(link, direction), _quote(link.name)[1:-1])
            link.rendered[key] = ends
        _, ends_text, hop, name = ends  # type: ignore[misc]
        head = message.head
        head_text = head.rendered
        if head_text is None:
            head_text = head.rendered = self._head(head)
        before_body, headers, raw, redacted = head_text  # type: ignore[misc]
        completeness: str = message.completeness
        body = message.body
        raw_body = ""
        if body:
            codings = head.fields.content_encoding
            if not codings and message.raw_body is None:
                try:
                    text = _quote(body.decode())
                    body_fragment = f',"body":{text},"body_bytes":{message.body_bytes}'
                    if raw:
                        raw_body = text[1:-1]
                except UnicodeDecodeError:
                    body_fragment, raw_body, completeness = self._odd_body(message, bool(raw))
            else:
                body_fragment, raw_body, completeness = self._odd_body(message, bool(raw))
        elif message.raw_body:
            body_fragment = f',"body_bytes":{message.body_bytes}'
            raw_body = _quote(message.raw_body.decode("utf-8", "replace"))[1:-1]
        else:
            body_fragment = f',"body_bytes":{message.body_bytes}'
        line = (
            f'{self._second_text}{nanoseconds:09d}Z","pid":{message.pid},"tid":{message.tid}{ends_text}'
            f'"bytes":{message.bytes}{before_body}{body_fragment}{headers}'
        )
        if message.trailers:
            line += f',"trailers":{self._trailers(message)}'
        if raw:
            line += f'{raw}{raw_body}"'
        line += f',"connection":"{name}","exchange":"{name}#{message.number}"'
        if hop:
            line += f',"hop":"{hop}{message.position}"'
        request = message.request
        if request is not None and completeness != "open":
            # A send is seen when it has returned: an answer can overtake it (docs/architecture.md, time).
            first = message.time_ns - request.time_ns
            last = message.end_ns - request.time_ns
            line += (
                f',"ttfb_ms":{first / 1e6 if first > 0 else 0:.3f},"duration_ms":{last / 1e6 if last > 0 else 0:.3f}'
            )
        line += f',"completeness":"{completeness}"'
        if message.missing_bytes:
            line += f',"missing_bytes":{message.missing_bytes},"missing_reason":"{message.missing_reason}"'
        return f"{line}{redacted}}}"

    def _ends(self, message: Message) -> str:
        link = message.link
        parts = []
        if message.process is not None:
            parts.append(f'"comm":{_quote(message.process.comm)}')
            if message.process.cmdline:
                parts.append(f'"cmdline":{_quote(message.process.cmdline)}')
        sent = message.direction == Direction.SEND
        if not link.passive:
            parts.append(f'"direction":"{_DIRECTIONS[message.direction]}"')
            if link.role is not None:
                parts.append(f'"role":"{link.role.value}"')
        if link.local_ip is not None and link.remote_ip is not None:
            local, remote = (link.local_ip, link.local_port), (link.remote_ip, link.remote_port)
            source, destination = (local, remote) if sent else (remote, local)
            parts.append(f'"source_ip":"{source[0]}","source_port":{source[1]}')
            parts.append(f'"dest_ip":"{destination[0]}","dest_port":{destination[1]}')
        if link.unix_path is not None:
            parts.append(f'"unix_path":{_quote(link.unix_path)}')
        return "".join(f",{part}" for part in parts) + ","

    def _fields(self, fields: Fields) -> _FieldsText:
        text = fields.rendered
        if text is None:
            redactor = self._redactor
            secret = tuple(dict.fromkeys(name for name, _ in fields.headers if redactor.is_secret_header(name)))
            shown = tuple((name, PLACEHOLDER if name in secret else value) for name, value in fields.headers)
            text = fields.rendered = _FieldsText(
                headers=f',"headers":{_object(shown)}' if shown else "",
                raw=_quote(redactor.block(fields.raw))[1:-1],
                redacted=secret,
            )
        return text  # type: ignore[return-value]

    def _head(self, head: Head) -> _HeadText:
        fields = self._fields(head.fields)
        start_line = head.start_line
        names: tuple[str, ...] = ()
        before = f',"protocol":"{head.version}"'
        if head.is_request:
            target, names = self._redactor.target(head.target)
            if names:
                start_line = start_line.replace(head.target, target, 1)
            before += f',"method":{_quote(head.method)},"url":{_quote(target)}'
        else:
            before += f',"status_code":{head.status}'
            if head.reason:
                before += f',"reason":{_quote(head.reason)}'
        redacted = tuple(dict.fromkeys(fields.redacted + names))
        return _HeadText(
            before_body=before,
            headers=fields.headers,
            raw=f',"raw_payload":"{_quote(start_line)[1:-1]}\\r\\n{fields.raw}' if self._raw_payload else "",
            redacted=f',"redacted":[{",".join(map(_quote, redacted))}]' if redacted else "",
        )

    def _trailers(self, message: Message) -> str:
        redactor = self._redactor
        return _object(
            tuple(
                (name, PLACEHOLDER if redactor.is_secret_header(name) else value) for name, value in message.trailers
            )
        )

    def _odd_body(self, message: Message, raw: bool) -> tuple[str, str, str]:
        """Coded, chunked, not text, or cut inside a character: the fragment, the raw body, the completeness."""
        completeness: Completeness = message.completeness
        body, cut = decoded_body(message, self._body_limit)
        if cut and completeness is Completeness.COMPLETE:
            completeness = Completeness.TRUNCATED
        text = body_text(body, completeness is not Completeness.COMPLETE)
        if text is None:
            shown = f',"body":"{base64.b64encode(body).decode()}","body_encoding":"base64"'
        else:
            shown = f',"body":{_quote(text)}' if text else ""
        raw_text = ""
        if raw:
            on_stream = message.body if message.raw_body is None else message.raw_body
            raw_text = _quote(on_stream.decode("utf-8", "replace"))[1:-1]
        return f'{shown},"body_bytes":{message.body_bytes}', raw_text, completeness.value


class JsonLines:
    """Writes to `path`, or to standard output where that is ``-``. The file is made 0600 and appended to."""

    def __init__(self, path: str, writer: RecordWriter, counters: Counters, warn: Callable[[str], None]) -> None:
        self._path = path
        self._writer = writer
        self._counters = counters
        self._warn = warn
        self._warned = False
        self._descriptor = open_output(path)

    def emit(self, messages: list[Message]) -> None:
        render = self._writer.render
        lines = [render(message) for message in messages]
        lines.append("")
        self._write("\n".join(lines).encode("utf-8", "backslashreplace"), len(messages))

    def _write(self, data: bytes, records: int) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            if self._path == "-" and error.errno == errno.EPIPE:
                self._counters.output_failed += records
                raise OutputClosed from error
            # What did go out ends in the middle of a line: count whole lines.
            written = data[: len(data) - len(view)].count(b"\n")
            self._counters.written += written
            self._counters.output_failed += records - written
            if not self._warned:
                self._warned = True
                self._warn(f"{self._path}: {error.strerror}: records are lost until it can be written again")
            self._end_line(written, data, view)
            return
        self._counters.written += records
        self._warned = False

    def _end_line(self, written: int, data: bytes, rest: memoryview) -> None:
        """A line that broke off must not run into the next one."""
        done = len(data) - len(rest)
        if done and data[done - 1 : done] != b"\n" and self._path != "-":
            try:
                size = os.fstat(self._descriptor).st_size
                broken = done - (data.rfind(b"\n", 0, done) + 1)
                os.ftruncate(self._descriptor, size - broken)
            except OSError:
                pass  # a pipe, or worse: nothing more can be done

    def flush(self) -> None:
        """Nothing is held back."""

    def reopen(self) -> None:
        if self._path == "-":
            return
        try:
            descriptor = open_output(self._path)
        except CommandError as error:
            self._warn(str(error))
            return
        os.close(self._descriptor)
        self._descriptor = descriptor

    def set_wall_offset(self, offset_ns: int) -> None:
        self._writer.wall_offset_ns = offset_ns

    def close(self) -> None:
        if self._path != "-":
            os.close(self._descriptor)


def open_output(path: str) -> int:
    """A descriptor to append to; CommandError (exit status 2) where that cannot be."""
    if path == "-":
        return sys.stdout.fileno()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        reason = "is a symbolic link: give the file itself" if error.errno == errno.ELOOP else error.strerror
        raise CommandError(f"--output {path}: {reason}", exit_code=ExitCode.USAGE) from error
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CommandError(f"--output {path}: is a directory", exit_code=ExitCode.USAGE)
    return descriptor


__all__ = ["JsonLines", "RecordWriter", "Role", "body_text", "decoded_body", "hop_prefix", "open_output"]
