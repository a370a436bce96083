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
    container: tuple[str, ...] = ()
    exclude_container: tuple[str, ...] = ()
    compose_project: tuple[str, ...] = ()
    compose_service: tuple[str, ...] = ()
    container_label: tuple[str, ...] = ()
    container_socket: tuple[str, ...] = ()
    container_namespace: tuple[str, ...] = ()
    opt_in: str | None = None
    """The variable; None: nobody needs to ask for it."""
    opt_in_values: tuple[str, ...] = ()
    env_output: str | None = None
    env_prefix: tuple[str, ...] = ()
    stream_interval: float = 5.0
    ledger: str | None = None
    body_limit: int = 4096
    no_raw_payload: bool = False
    redact: tuple[str, ...] = ()
    no_redact: bool = False
    mask: tuple[str, ...] = ()
    rotate_size: int | None = None
    rotate_age: float | None = None
    rotate_keep: int = 7
    rotate_compression: str = "zstd"
    encrypt_to: tuple[str, ...] = ()
    audit: str | None = None
    user: str | None = None
    proto: tuple[str, ...] = ()
    tls: bool = True
    metrics_address: str | None = None
    """HOST:PORT; no host is loopback."""
    metrics_config: str | None = None
    """TLS and passwords for it, in the format of Prometheus' exporter-toolkit."""
    route: tuple[str, ...] = ()
    max_cpu: float | None = None
    """Percent of one core."""
    duration: float | None = None
    count: int | None = None
    verbose: bool = False
    log_format: str = "text"
    command: tuple[str, ...] = ()
    """After ``--``: started, watched, and waited for."""

    @property
    def numbers_only(self) -> bool:
        """Nobody wants to see a message."""
        return self.no_output and self.env_output is None and self.count is None


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


def _percent(text: str) -> float:
    """A number of percent, more than 0"""
    value = float(text)
    if not 0 < value <= PERCENT_MAX:
        raise ValueError
    return value


def _text(text: str) -> str:
    """A text that is not empty"""
    if not text:
        raise ValueError
    return text


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them"""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ValueError
    return names


def _variable(text: str) -> str:
    """The name of an environment variable"""
    if not text or "=" in text or "\0" in text:
        raise ValueError
    return text


def _address(text: str) -> str:
    """An address: HOST:PORT or :PORT"""
    _, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError
    return text


def _route(text: str) -> str:
    """A path that begins with /"""
    if not text.startswith("/"):
        raise ValueError
    return text


def _size(text: str) -> int:
    """A number of bytes, or with K, M or G behind it of KiB, MiB or GiB, from 4 KiB on"""
    value = int(text[:-1]) << _SHIFTS[text[-1:].upper()] if text[-1:].upper() in _SHIFTS else int(text)
    if not 4096 <= value < 1 << 62:
        raise ValueError
    return value


_SHIFTS: Final = {"K": 10, "M": 20, "G": 30}


def _mask(text: str) -> str:
    """Addresses or homes"""
    if text not in ("addresses", "homes"):
        raise ValueError
    return text


def _compression(text: str) -> str:
    """Zstd, gzip or none"""
    if text not in ("zstd", "gzip", "none"):
        raise ValueError
    return text


def _log_format(text: str) -> str:
    """Text or json"""
    if text not in ("text", "json"):
        raise ValueError
    return text


PERCENT_MAX: Final = 100_000
"""Of a core: nobody has more than a thousand."""
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
    alone: str | None = None
    """What it means without a value; None: it needs one."""

    @property
    def attribute(self) -> str:
        return self.name.replace("-", "_")


_PID = _whole(1, 4_194_304)  # PID_MAX_LIMIT
_PORT = _whole(1, 65_535)

OPT_IN: Final = "ADI_PROFILE"
"""By which processes ask to be watched, where no other variable is named."""

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
    Option("container", _text, "NAME", "watch this container, by name or id", True, capture_only=True, record_too=True),
    Option("exclude-container", _text, "NAME", "leave it out", True, capture_only=True, record_too=True),
    Option("compose-project", _text, "NAME", "watch its containers", True, capture_only=True, record_too=True),
    Option("compose-service", _text, "NAME", "watch its containers", True, capture_only=True, record_too=True),
    Option(
        "container-label", _text, "KEY[=VALUE]", "watch containers with it", True, capture_only=True, record_too=True
    ),
    Option("container-socket", _text, "PATH", "the engine's socket (found)", True, capture_only=True, record_too=True),
    Option("container-namespace", _text, "NAME", "of containerd (all)", True, capture_only=True, record_too=True),
    Option(
        "opt-in",
        _variable,
        "VARIABLE",
        f"watch only processes with this in their environment ({OPT_IN})",
        capture_only=True,
        record_too=True,
        alone=OPT_IN,
    ),
    Option("opt-in-values", _names, "A,B", "and with one of these values", capture_only=True, record_too=True),
    Option("env-output", _text, "FILE", "a YAML document for each process that speaks HTTP", capture_only=True),
    Option("env-prefix", _names, "A,B", "of the environment, only what begins so", capture_only=True),
    Option("stream-interval", _seconds, "SECONDS", "interim record of a message that takes longer (5; 0: none)"),
    Option("ledger", _text, "FILE", "write the ledger as JSON at the end", record_too=True),
    Option("body-limit", _whole(0, BODY_LIMIT_MAX), "BYTES", "keep this much of a body (4096)"),
    Option("no-raw-payload", None, "", "leave raw_payload out"),
    Option("redact", _text, "NAME", "one more name whose value is a secret", True),
    Option("no-redact", None, "", "write secrets as they are"),
    Option("mask", _mask, "WHAT", "mask addresses, or homes (home directories)", True),
    Option("rotate-size", _size, "BYTES", "begin a new file before this size (K, M, G); the old one is FILE.1"),
    Option("rotate-age", _seconds, "SECONDS", "begin a new file after this time"),
    Option("rotate-keep", _whole(0, 1_000_000), "N", "keep so many old files (7)"),
    Option("rotate-compression", _compression, "FORMAT", "of old files: zstd (default), gzip or none"),
    Option("encrypt-to", _text, "RECIPIENT", "encrypt the output for this age or SSH public key", True),
    Option(
        "audit", _text, "FILE", "who captured what, when: a line a start and end", capture_only=True, record_too=True
    ),
    Option(
        "user",
        _text,
        "NAME",
        "become this user, with the capabilities that are needed",
        capture_only=True,
        record_too=True,
    ),
    Option("proto", _text, "FILE", "decode gRPC bodies by this descriptor set (protoc --descriptor_set_out)", True),
    Option("tls", None, "", "read TLS through the TLS libraries (on)", capture_only=True, record_too=True, on=True),
    Option("metrics-address", _address, "HOST:PORT", "serve Prometheus metrics (:PORT is loopback)", capture_only=True),
    Option("metrics-config", _text, "FILE", "TLS and passwords for it (exporter-toolkit's)", capture_only=True),
    Option("route", _route, "PATTERN", "a route of the metrics: /users/{id}, /static/*", True, capture_only=True),
    Option(
        "max-cpu", _percent, "PERCENT", "of one core; over it, the log leaves out connections, whole", capture_only=True
    ),
    Option("duration", _seconds, "SECONDS", "stop after this time", capture_only=True, record_too=True),
    Option("count", _whole(1, 1 << 62), "N", "stop after N records"),
    Option("verbose", None, "", "more of the agent's own log", short="v", record_too=True),
    Option("log-format", _log_format, "FORMAT", "of the agent's own log: text (default) or json", record_too=True),
)
_BY_ATTRIBUTE: Final = {option.attribute: option for option in OPTIONS}
_ENVIRONMENT_PREFIX: Final = "NETPROFILER_"
_OTHER_NAMES: Final = {
    "output": "OUTPUT_PATH",
    "env_output": "ENV_OUTPUT_PATH",
    "env_prefix": "ENV_PREFIX_LIST",
    "container_socket": "CONTAINERD_SOCKET",
    "container_namespace": "CONTAINERD_NAMESPACE",
}


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
        elif option.alone is not None:
            parser.add_argument(
                *names,
                nargs="?",
                const=option.alone,
                metavar=option.placeholder,
                default=argparse.SUPPRESS,
                help=option.help,
            )
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
    for attribute, name in _OTHER_NAMES.items():
        text = environment.get(name)
        if text and attribute not in values:
            option = _BY_ATTRIBUTE[attribute]
            value = _convert(option, text, name)
            values[attribute] = (value,) if option.repeated else value
    # Set to anything, "" included, it turns opt-in on.
    allowed = environment.get("ADI_PROFILE_ALLOWED")
    if allowed is not None and "opt_in" not in values:
        values["opt_in"] = OPT_IN
        if allowed.strip(" ,"):
            values.setdefault("opt_in_values", _names(allowed))
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
        elif option.alone is not None and isinstance(value, bool):
            values[option.attribute] = option.alone if value else None
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
    if values.get("max_cpu") is not None and values.get("no_output"):
        raise CommandError(
            "--max-cpu means nothing with --no-output",
            ExitCode.USAGE,
            remedy="leave it out: what is only counted costs nearly nothing",
        )
    if values.get("opt_in_values") and values.get("opt_in") is None:
        values["opt_in"] = OPT_IN
    return Config(**values, command=command)
