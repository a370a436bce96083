"""JSON Lines: one record a message, as docs/record.md says (and netprofiler/record.schema.json).

Contract: `RecordWriter.render` makes one line; `JsonLines` writes them to a file or to standard output. Key order is
fixed, a key that does not apply is absent.

A line is a join of fragments, most of them made once: per connection and direction (process, addresses), per block of
header fields, per head. What is made per message is the time, the ids, the counts and the body.
"""

from __future__ import annotations

import base64
import errno
from collections.abc import Callable
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from netprofiler.content import decode
from netprofiler.counters import Counters
from netprofiler.exchange import (
    Completeness,
    Direction,
    Fields,
    Grpc,
    Head,
    Link,
    Message,
    Place,
    Process,
    Tls,
    WebSocket,
)
from netprofiler.protocols.grpc import uncompress
from netprofiler.redaction import PLACEHOLDER, Redactor
from netprofiler.sinks.base import OutputClosed
from netprofiler.sinks.files import EncryptedFile, OutputFile

if TYPE_CHECKING:
    from netprofiler.protobuf import Descriptors  # slow to import, and of use to few

_DIRECTIONS: Final = ("send", "recv")
_quote: Callable[[str], str] = encode_basestring


class _FieldsText(NamedTuple):
    headers: str
    """``,"headers":{…}``"""
    raw: str
    """The block inside a JSON string."""
    redacted: tuple[str, ...]


class _EndsText(NamedTuple):
    """In the order in which `RecordWriter.render` counts on it. What is kept of this, and of `_HeadText`, is a plain tuple:
    taking a named one apart costs three times as much.
    """

    process: Process | None
    before_tid: str
    hop: str
    after_tid: str
    tls: str
    connection: str
    places: str


class _HeadText(NamedTuple):
    before_body: str
    """``,"protocol":…`` up to the body."""
    headers: str
    raw: str
    """``,"raw_payload":"…`` up to the body, or nothing."""
    tail: str
    """``,"unknown_fields":…,"redacted":[…]`` or less."""


_WHOLE: Final = Completeness.COMPLETE  # looking a member up in its enum takes longer than all of a look-up in a dict
_END: Final = {each: f',"completeness":"{each.value}"' for each in Completeness}
_COMPLETE: Final = _END[Completeness.COMPLETE]
_TRUNCATED: Final = _END[Completeness.TRUNCATED]
_OPEN: Final = _END[Completeness.OPEN]

_ALPN: Final = {"HTTP/1.0": ("http/1.0", "http/1.1"), "HTTP/2": ("h2",)}
"""By what is spoken, else ``http/1.1``: an HTTP/1.0 answer is HTTP/1.1 as far as ALPN goes, and WebSocket begins as that."""

_COMPRESSED: Final = "compressed"
"""In `redacted`: messages of gRPC in a compression that cannot be undone, so that nobody knows what is in them."""
_NO_SECOND: Final = -(1 << 62)
"""No time of a message is within a second after it, whatever a damaged recording says."""
ENDS_MAX: Final = 32
"""Processes that share one connection (a pre-forked server's workers) whose fragments are kept; the rest is rare."""


def _completeness(message: Message) -> str:
    """How much is known; the same objects each time, so that they can be compared by identity."""
    if message.missing_bytes:
        return (
            f'{_END[message.completeness]},"missing_bytes":{message.missing_bytes}'
            f',"missing_reason":"{message.missing_reason}"'
        )
    return _END[message.completeness]


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


def _tls(tls: Tls | None, version: str) -> str:
    """``,"tls":{…}``, or nothing. `version`: what is spoken inside."""
    if tls is None:
        return ""
    alpn = tls.alpn_selected
    if alpn is None and tls.version == "1.3":
        alpn = next((name for name in _ALPN.get(version, ("http/1.1",)) if name in tls.alpn_offered), None)
    members = (
        ("library", tls.library),
        ("version", tls.version),
        ("cipher", tls.cipher),
        ("sni", tls.sni),
        ("alpn", alpn),
    )
    return f',"tls":{{{",".join(f"{_quote(name)}:{_quote(value)}" for name, value in members if value)}}}'


def _places(local: Place | None, remote: Place | None, *, sent: bool) -> str:
    """``,"source_container":{…},"destination_container":{…},"destination_type":"…"``, as far as they are known."""
    source, destination = (local, remote) if sent else (remote, local)
    text = ""
    for name, place in (("source", source), ("destination", destination)):
        if place is not None and place.container is not None:
            container = place.container
            members = (
                ("service", container.service),
                ("image", container.image),
                ("container_id", container.container_id),
                ("container_name", container.container_name),
                ("project", container.project),
                ("pod", container.pod),
                ("namespace", container.namespace),
            )
            known = ",".join(f"{_quote(key)}:{_quote(value)}" for key, value in members if value)
            text += f',"{name}_container":{{{known}}}'
    return f'{text},"destination_type":"{destination.type.value}"' if destination is not None else text


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
    """Messages → lines (without the newline). `wall_offset_ns`: what makes wall clock of the records' time. `descriptors`: by
    which gRPC bodies are decoded.
    """

    def __init__(
        self,
        redactor: Redactor,
        *,
        wall_offset_ns: int,
        body_limit: int,
        raw_payload: bool,
        descriptors: Descriptors | None = None,
    ) -> None:
        self.wall_offset_ns = wall_offset_ns
        self._descriptors = descriptors
        self._redactor = redactor
        self._suspicious = redactor.suspicious
        self._body_limit = body_limit
        self._raw_payload = raw_payload
        self._second_ns = _NO_SECOND
        self._second_text = ""

    def render(self, message: Message) -> str:
        """One line. The hot path: formatting an enum, or adding to a string part by part, would cost as much again."""
        since = message.time_ns - self._second_ns
        if not 0 <= since < 1_000_000_000:
            since = self._new_second(message.time_ns)
        link = message.link
        process = message.process
        ends = link.rendered.get(message.pid << 1 | message.direction)
        if ends is None or ends[0] is not process:
            ends = self._ends(message)
        _, before_tid, hop, after_tid, tls, connection, places = ends
        head = message.head
        head_text = head.rendered
        if head_text is None:
            head_text = head.rendered = tuple(self._head(head))
        before_body, headers, raw, tail = head_text
        end = _COMPLETE if message.completeness is _WHOLE else _completeness(message)
        raw_body = ""
        body = message.body
        extra = message.extra
        secrets: tuple[str, ...] = ()
        if extra is not None:
            tls += self._extra(extra, is_request=head.is_request)
        if not body and not message.raw_body:
            shown = ""
        elif extra is not None and extra.__class__ is Grpc:
            shown, end, secrets = self._grpc_body(message, extra)
        elif message.raw_body is None and not head.fields.content_encoding:
            try:
                text = body.decode()
                if self._suspicious(body, cut=end is not _COMPLETE):
                    text, secrets = self._redactor.text(text, cut=end is not _COMPLETE)
                text = _quote(text)
                shown = f',"body":{text}'
                raw_body = text[1:-1]
            except UnicodeDecodeError:
                shown, raw_body, end, secrets = self._odd_body(message)
        else:
            shown, raw_body, end, secrets = self._odd_body(message)
        if message.trailers:
            headers, raw_body, secrets = self._with_trailers(message, headers, raw_body, secrets)
        if secrets:
            tail = self._tail(head, self._start(head)[3] + secrets)
        if raw:
            raw = f'{raw}{raw_body}"'
        request = message.request
        if request is None or end is _OPEN:
            times = ""
        else:
            # A send is seen when it has returned: an answer can overtake it (docs/architecture.md, time).
            start_ns = request.time_ns
            first = message.time_ns - start_ns
            last = message.end_ns - start_ns
            if first == last:  # in one piece
                text = f"{first / 1e6 if first > 0 else 0:.3f}"
                times = f',"ttfb_ms":{text},"duration_ms":{text}'
            else:
                times = f',"ttfb_ms":{first / 1e6 if first > 0 else 0:.3f},"duration_ms":{last / 1e6 if last > 0 else 0:.3f}'
        number = message.number
        tid = message.tid if message.pid else ""  # 0: a packet capture knows neither pid nor tid
        if hop:
            hop = f'{hop}{message.position}"'
        return (
            f"{self._second_text}{str(since + 1_000_000_000)[1:]}{before_tid}{tid}{after_tid}{message.stream_bytes}"
            f'{before_body}{shown},"body_bytes":{message.body_bytes}{headers}{raw}{tls}{connection}{number}"{hop}{times}'
            f"{end}{tail}{places}}}"
        )

    def set_wall_offset(self, offset_ns: int) -> None:
        self.wall_offset_ns = offset_ns
        self._second_ns = _NO_SECOND

    def _new_second(self, time_ns: int) -> int:
        second, nanoseconds = divmod(time_ns + self.wall_offset_ns, 1_000_000_000)
        self._second_ns = time_ns - nanoseconds
        self._second_text = datetime.fromtimestamp(second, UTC).strftime('{"timestamp":"%Y-%m-%dT%H:%M:%S.')
        return nanoseconds

    def _ends(self, message: Message) -> tuple[Any, ...]:
        """What all messages of one process in one direction of a connection share."""
        link = message.link
        process = message.process
        parts = []
        if process is not None:
            parts.append(f'"comm":{_quote(process.comm)}')
            if process.cmdline:
                parts.append(f'"cmdline":{_quote(self._redactor.command_line(process.cmdline)[0])}')
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
        parts.append('"bytes":')
        name = _quote(link.name)[1:-1]
        hop = hop_prefix(link, message.direction)
        if len(link.rendered) >= ENDS_MAX:
            link.rendered.clear()
        text = _EndsText(
            process=process,
            before_tid=f'Z","pid":{message.pid},"tid":' if message.pid else 'Z"',
            hop=f',"hop":"{hop}' if hop else "",
            after_tid="," + ",".join(parts),
            tls=_tls(link.tls, message.head.version),
            connection=f',"connection":"{name}","exchange":"{name}#',
            places=_places(None if process is None else process.place, link.remote, sent=sent),
        )
        kept = link.rendered[message.pid << 1 | message.direction] = tuple(text)
        return kept

    def _fields(self, fields: Fields) -> _FieldsText:
        text: _FieldsText | None = fields.rendered
        if text is None:
            redactor = self._redactor
            shown, secret = redactor.fields(fields.headers)
            raw = redactor.block(fields.raw) if secret else fields.raw
            text = fields.rendered = _FieldsText(
                headers=f',"headers":{_object(shown)}',
                raw=_quote(raw)[1:-1],
                redacted=secret,
            )
        return text

    def _head(self, head: Head) -> _HeadText:
        target, reason, start_line, names = self._start(head)
        before = f',"protocol":"{head.version}"'
        if head.is_request:
            if head.method:
                before += f',"method":{_quote(head.method)}'
            if target:
                before += f',"url":{_quote(target)}'
        elif head.status or start_line:
            before += f',"status_code":{head.status}'
            if reason:
                before += f',"reason":{_quote(reason)}'
        fields = self._fields(head.fields)
        return _HeadText(
            before_body=before,
            headers="" if head.version == "websocket" else fields.headers,
            raw=f',"raw_payload":"{_quote(start_line)[1:-1]}{fields.raw}' if self._raw_payload and start_line else "",
            tail=self._tail(head, names),
        )

    def _start(self, head: Head) -> tuple[str, str, str, tuple[str, ...]]:
        """Target, reason and start line without secrets, and names of what was replaced."""
        redactor = self._redactor
        target, reason, start_line = head.target, head.reason, head.start_line
        if not redactor.suspicious((start_line or target or reason).encode("utf-8", "replace")):
            return target, reason, start_line, ()
        target, names = redactor.target(target)
        if names and start_line:
            # The target again, as the raw payload has it.
            method, raw_target, version = start_line.split(" ", 2)
            start_line = f"{method} {redactor.target(raw_target)[0]} {version}"
        if not head.is_request:
            reason, names = redactor.text(reason)
            start_line, _ = redactor.text(start_line)
        return target, reason, start_line, names

    def _tail(self, head: Head, secrets: tuple[str, ...]) -> str:
        """What stands behind the completeness. `secrets`: names that were replaced in other places than the header fields."""
        unknown = head.fields.unknown
        text = f',"unknown_fields":{unknown}' if unknown else ""
        names = tuple(dict.fromkeys(self._fields(head.fields).redacted + secrets))
        return f'{text},"redacted":[{",".join(map(_quote, names))}]' if names else text

    def _with_trailers(
        self, message: Message, headers: str, raw_body: str, secrets: tuple[str, ...]
    ) -> tuple[str, str, tuple[str, ...]]:
        """They stand behind the headers, and in the raw body; what is secret in them adds to `secrets`."""
        redactor = self._redactor
        shown, secret = redactor.fields(message.trailers)
        headers = f'{headers},"trailers":{_object(shown)}'
        if secret and message.raw_body and raw_body and raw_body != PLACEHOLDER:
            raw_text = redactor.block(message.raw_body.decode("utf-8", "replace"))
            raw_body = _quote(redactor.text(raw_text)[0])[1:-1]
        return headers, raw_body, secrets + secret

    def _extra(self, extra: Grpc | WebSocket, *, is_request: bool) -> str:
        """``,"grpc":{…}`` or ``,"websocket":{…}``: what is known of it."""
        if isinstance(extra, WebSocket):
            text = f',"websocket":{{"opcode":"{extra.opcode}"'
            if extra.close_code is not None:
                text += f',"close_code":{extra.close_code}'
                if extra.close_reason:
                    text += f',"close_reason":{_quote(self._redactor.text(extra.close_reason)[0])}'
            return f"{text}}}"
        text = ',"grpc":{'
        if extra.service and extra.method:
            text += f'"service":{_quote(extra.service)},"method":{_quote(extra.method)},'
        text += f'"messages":{extra.messages},"message_bytes":{extra.message_bytes}'
        if not is_request:
            if extra.status is not None:
                text += f',"status":{extra.status}'
            if extra.message:
                text += f',"message":{_quote(self._redactor.field("grpc-message", extra.message)[0])}'
        return f"{text}}}"

    def _grpc_body(self, message: Message, grpc: Grpc) -> tuple[str, str, tuple[str, ...]]:
        """Length-prefixed messages: the body's fragment, the completeness, names that were replaced. They are no text,
        even where they happen to be UTF-8.
        """
        body = message.body
        end = _completeness(message)
        # With a hole in it, where the next message begins is not known.
        if self._descriptors is not None and not message.missing_bytes:
            decoded = self._descriptors.decode(
                grpc,
                body,
                is_request=message.head.is_request,
                cut=message.completeness is not _WHOLE,
                limit=self._body_limit,
            )
            if decoded is not None:
                if not decoded.whole and message.completeness is _WHOLE:
                    end = _TRUNCATED
                json_text, names = self._redactor.text(decoded.text, cut=end is not _COMPLETE)
                return f',"body":{_quote(json_text)}', end, decoded.redacted + names
        hidden: tuple[str, ...] = ()
        if message.missing_bytes and grpc.encoding not in ("", "identity"):
            if self._redactor.enabled:
                body, hidden = PLACEHOLDER.encode(), (_COMPRESSED,)
        else:
            instead = PLACEHOLDER.encode() if self._redactor.enabled else None
            body, whole, unknown = uncompress(body, grpc.encoding, self._body_limit, instead)
            if unknown:
                hidden = (_COMPRESSED,)
            if not whole and message.completeness is _WHOLE:
                end = _TRUNCATED
        body, names = self._redactor.octets(body, cut=end is not _COMPLETE)
        return f',"body":"{base64.b64encode(body).decode()}","body_encoding":"base64"', end, names + hidden

    def _odd_body(self, message: Message) -> tuple[str, str, str, tuple[str, ...]]:
        """Coded, chunked, not text, or cut inside a character: the body's fragment, the raw body, the completeness, names
        that were replaced.
        """
        redactor = self._redactor
        body, cut = decoded_body(message, self._body_limit)
        end = _completeness(message)
        if cut and message.completeness is _WHOLE:
            end = _TRUNCATED
        is_cut = end is not _COMPLETE
        text = body_text(body, is_cut)
        if text is None:
            body, names = redactor.octets(body, cut=is_cut)
            shown = f',"body":"{base64.b64encode(body).decode()}","body_encoding":"base64"'
        else:
            text, names = redactor.text(text, cut=is_cut)
            shown = f',"body":{_quote(text)}' if text else ""
        raw_text = ""
        if self._raw_payload:
            coded = bool(message.head.fields.content_encoding)
            on_stream = message.body if message.raw_body is None else message.raw_body
            raw_text, raw_names = redactor.text(on_stream.decode("utf-8", "replace"), cut=is_cut)
            if (names and (coded or message.raw_body is not None)) or (coded and is_cut and redactor.enabled):
                # Framing splits a secret, compression hides it, and half of what is compressed may be more than was decoded.
                raw_text = PLACEHOLDER
            names = tuple(dict.fromkeys(names + raw_names))
            raw_text = _quote(raw_text)[1:-1]
        return shown, raw_text, end, names


class JsonLines:
    """Writes to `path`, or to standard output where that is ``-``, by sinks/files.py. `mask`: what is done to each line besides."""

    def __init__(
        self,
        path: str,
        writer: RecordWriter,
        counters: Counters,
        warn: Callable[[str], None],
        *,
        file: OutputFile | EncryptedFile | None = None,
        mask: Callable[[str], str] | None = None,
    ) -> None:
        self._file = OutputFile(path, None, warn) if file is None else file
        self._path = path
        self._writer = writer
        self._counters = counters
        self._warn = warn
        self._mask = mask
        self._failed = 0
        """Records that were lost since it could last be written."""

    def emit(self, messages: list[Message]) -> None:
        render = self._writer.render
        lines = [render(message) for message in messages]
        if self._mask is not None:
            lines = list(map(self._mask, lines))
        lines.append("")
        self._write("\n".join(lines).encode("utf-8", "backslashreplace"), len(messages))

    def _write(self, data: bytes, records: int) -> None:
        done = self._file.write(data)
        failure = self._file.failure
        lost = self._file.take_lost()
        if done == len(data) and failure is None:
            self._counters.written += records
            if self._failed:
                self._warn(f"{self._path}: is written again: {self._failed} records were lost")
                self._failed = 0
            return
        written = data[:done].count(b"\n") - lost
        self._counters.written += written
        self._counters.output_failed += records - written
        if self._path == "-" and failure is not None and failure.errno == errno.EPIPE:
            raise OutputClosed from failure
        if not self._failed:
            reason = failure.strerror if failure is not None else "cannot be written"
            self._warn(f"{self._path}: {reason}: records are lost until it can be written again")
        self._failed += records - written

    def flush(self) -> None:
        """Nothing is held back, but what an encrypted file holds until it ends."""

    def reopen(self) -> None:
        self._file.reopen()
        self._settle()

    def set_wall_offset(self, offset_ns: int) -> None:
        self._writer.set_wall_offset(offset_ns)

    def close(self) -> None:
        self._file.close()
        self._settle()

    def _settle(self) -> None:
        lost = self._file.take_lost()
        if lost:
            self._counters.written -= lost
            self._counters.output_failed += lost
            self._warn(f"{self._path}: cannot be written: {lost} records are lost")
