"""The configuration: one frozen `Config`, from the command line, the environment and a file.

Contract: the command line wins over ``NETPROFILER_…`` environment variables, which win over the TOML file (`--config`).
`OPTIONS` is the one table of what there is; argparse, the environment and the file are all read by it. What is wrong
raises `CommandError` (exit status 2) that names the option, its source and what would be right.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from netprofiler.errors import CommandError, ExitCode


@dataclass(frozen=True, slots=True)
class Config:
    """What a run was asked to do. Attributes are named as the options are."""

    output: str | None = None
    """A path, ``-``, or None: the terminal view, or JSON Lines to standard output where that is no terminal."""
    no_output: bool = False
    pid: tuple[int, ...] = ()
    exclude_pid: tuple[int, ...] = ()
    comm: tuple[str, ...] = ()
    exclude_comm: tuple[str, ...] = ()
    exe: tuple[str, ...] = ()
    exclude_exe: tuple[str, ...] = ()
    port: tuple[int, ...] = ()
    exclude_port: tuple[int, ...] = ()
    stream_interval: float = 5.0
    ledger: str | None = None
    body_limit: int = 4096
    no_raw_payload: bool = False
    redact: tuple[str, ...] = ()
    no_redact: bool = False
    proto: tuple[str, ...] = ()
    tls: bool = True
    duration: float | None = None
    count: int | None = None
    verbose: bool = False
    log_format: str = "text"
    command: tuple[str, ...] = ()
    """After ``--``: started, watched, and waited for."""


def _whole(lowest: int, highest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise ValueError
        return value

    convert.__doc__ = f"a whole number from {lowest} to {highest}"
    return convert


def _seconds(text: str) -> float:
    """A number of seconds, 0 or more"""
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError
    return value


def _text(text: str) -> str:
    """A text that is not empty"""
    if not text:
        raise ValueError
    return text


def _log_format(text: str) -> str:
    """Text or json"""
    if text not in ("text", "json"):
        raise ValueError
    return text


BODY_LIMIT_MAX: Final = 16 * 1024 * 1024
"""More of a body than this is no log line any more; it also bounds what one connection can hold of ours."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option, wherever it is given."""

    name: str
    """As on the command line, without the dashes."""
    convert: Callable[[str], Any] | None
    """None: a switch."""
    placeholder: str
    help: str
    repeated: bool = False
    short: str | None = None
    capture_only: bool = False
    """Means nothing to `replay`."""
    record_too: bool = False
    """Means something to `record`, which makes no records of its own."""
    on: bool = False
    """A switch that is on: ``--no-NAME`` turns it off."""

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")


_PID = _whole(1, 4_194_304)  # PID_MAX_LIMIT
_PORT = _whole(1, 65_535)

OPTIONS: Final = (
    Option("output", _text, "FILE", "JSON Lines to FILE (0600, appended to); - is standard output", short="o"),
    Option("no-output", None, "", "write no records"),
    Option("pid", _PID, "N", "watch this process and its children", True, record_too=True),
    Option("exclude-pid", _PID, "N", "leave it and its children out", True, record_too=True),
    Option("comm", _text, "NAME", "watch processes of this name", True, record_too=True),
    Option("exclude-comm", _text, "NAME", "leave them out", True, record_too=True),
    Option("exe", _text, "PATH", "watch processes of this executable", True, capture_only=True, record_too=True),
    Option("exclude-exe", _text, "PATH", "leave them out", True, capture_only=True, record_too=True),
    Option("port", _PORT, "N", "watch connections from or to this port", True, record_too=True),
    Option("exclude-port", _PORT, "N", "leave them out", True, record_too=True),
    Option("stream-interval", _seconds, "SECONDS", "interim record of a message that takes longer (5; 0: none)"),
    Option("ledger", _text, "FILE", "write the ledger as JSON at the end", record_too=True),
    Option("body-limit", _whole(0, BODY_LIMIT_MAX), "BYTES", "keep this much of a body (4096)"),
    Option("no-raw-payload", None, "", "leave raw_payload out"),
    Option("redact", _text, "NAME", "one more name whose value is a secret", True),
    Option("no-redact", None, "", "write secrets as they are"),
    Option("proto", _text, "FILE", "decode gRPC bodies by this descriptor set (protoc --descriptor_set_out)", True),
    Option("tls", None, "", "read TLS through the TLS libraries (on)", capture_only=True, record_too=True, on=True),
    Option("duration", _seconds, "SECONDS", "stop after this time", capture_only=True, record_too=True),
    Option("count", _whole(1, 1 << 62), "N", "stop after N records"),
    Option("verbose", None, "", "more of the agent's own log", short="v", record_too=True),
    Option("log-format", _log_format, "FORMAT", "of the agent's own log: text (default) or json", record_too=True),
)
_BY_ATTRIBUTE: Final = {option.attribute: option for option in OPTIONS}
_ENVIRONMENT_PREFIX: Final = "NETPROFILER_"


def _convert(option: Option, value: str, source: str) -> Any:
    assert option.convert is not None
    try:
        return option.convert(value)
    except (ValueError, OverflowError):
        what = option.convert.__doc__ or ""
        what = what[:1].lower() + what[1:]
        raise CommandError(f"{source}: {value!r} is not {what}", ExitCode.USAGE) from None


def add_options(parser: argparse.ArgumentParser, *, capture: bool, outputs: bool = True) -> None:
    """Defaults are SUPPRESSed, so that what was not said can come from elsewhere."""
    for option in OPTIONS:
        if (option.capture_only and not capture) or not (option.record_too or outputs):
            continue
        names = ([f"-{option.short}"] if option.short else []) + [f"--{option.name}"]
        if option.on:
            parser.add_argument(
                *names, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=option.help
            )
        elif option.convert is None:
            parser.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=option.help)
        else:
            parser.add_argument(
                *names,
                action="append" if option.repeated else "store",
                metavar=option.placeholder,
                default=argparse.SUPPRESS,
                help=option.help,
            )
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="TOML file with the same names")


def _switch(value: str, source: str) -> bool:
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("", "0", "false", "no", "off"):
        return False
    raise CommandError(f"{source}: {value!r} is neither true nor false", ExitCode.USAGE)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in OPTIONS:
        name = _ENVIRONMENT_PREFIX + option.attribute.upper()
        text = environment.get(name)
        if text is None:
            continue
        if option.convert is None:
            values[option.attribute] = _switch(text, name)
        elif option.repeated:
            values[option.attribute] = tuple(_convert(option, part, name) for part in text.split(",") if part)
        elif text:
            values[option.attribute] = _convert(option, text, name)
    # The names of the profiler that people come from.
    if "output" not in values and environment.get("OUTPUT_PATH"):
        values["output"] = environment["OUTPUT_PATH"]
    return values


def _from_file(path: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--config {path}: {error.strerror}", ExitCode.USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"--config {path}: not TOML: {error}", ExitCode.USAGE) from error
    values: dict[str, Any] = {}
    for name, value in table.items():
        option = _BY_ATTRIBUTE.get(name.replace("-", "_"))
        source = f"{path}: {name}"
        if option is None:
            raise CommandError(f"{source}: there is no such option", ExitCode.USAGE)
        if option.convert is None:
            if not isinstance(value, bool):
                raise CommandError(f"{source}: write true or false", ExitCode.USAGE)
            values[option.attribute] = value
        elif option.repeated:
            items = value if isinstance(value, list) else [value]
            values[option.attribute] = tuple(_convert(option, str(item), source) for item in items)
        elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
            values[option.attribute] = _convert(option, str(value), source)
        else:
            raise CommandError(f"{source}: write a single value", ExitCode.USAGE)
    return values


def make_config(
    arguments: argparse.Namespace, environment: Mapping[str, str] | None = None, command: tuple[str, ...] = ()
) -> Config:
    """All three sources together."""
    environment = os.environ if environment is None else environment
    given = vars(arguments)
    values: dict[str, Any] = {}
    path = given.get("config") or environment.get(f"{_ENVIRONMENT_PREFIX}CONFIG")
    if path:
        values |= _from_file(path)
    values |= _from_environment(environment)
    known = {field.name for field in fields(Config)}
    for attribute, value in given.items():
        option = _BY_ATTRIBUTE.get(attribute)
        if option is None or attribute not in known:
            continue
        source = f"--{option.name}"
        if option.convert is None:
            values[attribute] = value
        elif option.repeated:
            values[attribute] = tuple(_convert(option, item, source) for item in value)
        else:
            values[attribute] = _convert(option, value, source)
    if values.get("output") is not None and values.get("no_output"):
        raise CommandError("--output and --no-output exclude each other", ExitCode.USAGE)
    return Config(**values, command=command)
