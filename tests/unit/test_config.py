"""The configuration: command line over environment over file; what is wrong names the option and what would be right."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from netprofiler.config import OPTIONS, Config, Option, add_options, make_config
from netprofiler.errors import CommandError

PROPER: dict[str, tuple[str, str, str, Any]] = {
    "output": ("a", "b", "c", "c"),
    "pid": ("1", "2", "3", (3,)),
    "exclude-pid": ("1", "2", "3", (3,)),
    "comm": ("a", "b", "c", ("c",)),
    "exclude-comm": ("a", "b", "c", ("c",)),
    "exe": ("/a", "/b", "/c", ("/c",)),
    "exclude-exe": ("/a", "/b", "/c", ("/c",)),
    "port": ("1", "2", "3", (3,)),
    "exclude-port": ("1", "2", "3", (3,)),
    "container": ("a", "b", "c", ("c",)),
    "exclude-container": ("a", "b", "c", ("c",)),
    "compose-project": ("a", "b", "c", ("c",)),
    "compose-service": ("a", "b", "c", ("c",)),
    "container-label": ("a", "b", "c=d", ("c=d",)),
    "container-socket": ("a", "b", "c", ("c",)),
    "container-namespace": ("a", "b", "c", ("c",)),
    "opt-in": ("A", "B", "C", "C"),
    "opt-in-values": ("a", "b", "c, d,", ("c", "d")),
    "env-output": ("a", "b", "c", "c"),
    "env-prefix": ("a", "b", "C_,D_", ("C_", "D_")),
    "stream-interval": ("1", "2", "3.5", 3.5),
    "ledger": ("a", "b", "c", "c"),
    "body-limit": ("1", "2", "3", 3),
    "redact": ("a", "b", "c", ("c",)),
    "mask": ("homes", "homes", "addresses", ("addresses",)),
    "rotate-size": ("4096", "8K", "1M", 1048576),
    "rotate-age": ("1", "2", "3.5", 3.5),
    "max-cpu": ("10", "20", "12.5", 12.5),
    "rotate-keep": ("1", "2", "3", 3),
    "rotate-compression": ("none", "zstd", "gzip", "gzip"),
    "encrypt-to": ("a", "b", "c", ("c",)),
    "audit": ("a", "b", "c", "c"),
    "user": ("a", "b", "c", "c"),
    "proto": ("a", "b", "c", ("c",)),
    "metrics-address": (":1", "[::1]:2", "0.0.0.0:3", "0.0.0.0:3"),
    "metrics-config": ("a", "b", "c", "c"),
    "route": ("/a", "/b", "/c/*", ("/c/*",)),
    "duration": ("1", "2", "3", 3.0),
    "count": ("1", "2", "3", 3),
    "log-format": ("text", "text", "json", "json"),
}
"""For each option with a value: of the file, of the environment, of the command line, and what the last one means."""

WITH_VALUE = [option for option in OPTIONS if option.convert is not None]
SWITCHES = [option for option in OPTIONS if option.convert is None]


def name_of(option: Option) -> str:
    return option.name


def config(
    *arguments: str, environment: dict[str, str] | None = None, capture: bool = True, command: tuple[str, ...] = ()
) -> Config:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, capture=capture)
    return make_config(parser.parse_args(arguments), environment or {}, command)


def refusal(*arguments: str, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(CommandError) as raised:
        config(*arguments, environment=environment)
    assert raised.value.exit_code == 2
    text = str(raised.value)
    assert "\n" not in text
    return text


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "netprofiler.toml"
    path.write_text(text)
    return str(path)


def test_nothing_said_is_the_defaults() -> None:
    assert config() == Config()


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    names = {option.attribute for option in OPTIONS}
    assert names | {"command"} == {field.name for field in fields(Config)}
    assert len(names) == len(OPTIONS)
    assert {option.name for option in WITH_VALUE} == set(PROPER), "give the new option a row in PROPER"


@pytest.mark.parametrize("option", WITH_VALUE, ids=name_of)
def test_the_command_line_wins_over_the_environment_and_that_over_the_file(option: Option, tmp_path: Path) -> None:
    of_file, of_environment, of_command_line, meant = PROPER[option.name]
    path = write(tmp_path, f'{option.name} = "{of_file}"')
    variable = f"NETPROFILER_{option.attribute.upper()}"

    def value(made: Config) -> Any:
        return getattr(made, option.attribute)

    def expect(text: str) -> Any:
        return value(config(f"--{option.name}", text))

    assert value(config(f"--{option.name}", of_command_line)) == meant
    assert value(config("--config", path)) == expect(of_file)
    assert value(config("--config", path, environment={variable: of_environment})) == expect(of_environment)
    all_three = config("--config", path, f"--{option.name}", of_command_line, environment={variable: of_environment})
    assert value(all_three) == meant


@pytest.mark.parametrize("option", SWITCHES, ids=name_of)
def test_switches(option: Option, tmp_path: Path) -> None:
    variable = f"NETPROFILER_{option.attribute.upper()}"
    path = write(tmp_path, f"{option.attribute} = true")

    def is_on(*arguments: str, **environment: str) -> bool:
        made: bool = getattr(config(*arguments, environment=environment), option.attribute)
        return made

    assert is_on(f"--{option.name}")
    assert is_on("--config", path)
    assert is_on(**{variable: "yes"})
    assert not is_on("--config", path, **{variable: "0"})
    assert is_on(f"--{option.name}", **{variable: "off"})
    assert variable in refusal(environment={variable: "perhaps"})
    bad = write(tmp_path, f'{option.name} = "true"')
    assert "write true or false" in refusal("--config", bad)


@pytest.mark.parametrize(
    ("name", "bad", "right"),
    [
        ("output", "", "not empty"),
        ("ledger", "", "not empty"),
        ("comm", "", "not empty"),
        ("exclude-comm", "", "not empty"),
        ("exe", "", "not empty"),
        ("exclude-exe", "", "not empty"),
        ("container", "", "not empty"),
        ("exclude-container", "", "not empty"),
        ("compose-project", "", "not empty"),
        ("compose-service", "", "not empty"),
        ("container-label", "", "not empty"),
        ("container-socket", "", "not empty"),
        ("container-namespace", "", "not empty"),
        ("opt-in", "A=B", "name of an environment variable"),
        ("opt-in-values", ",", "names with commas"),
        ("env-output", "", "not empty"),
        ("env-prefix", ",", "names with commas"),
        ("redact", "", "not empty"),
        ("proto", "", "not empty"),
        ("audit", "", "not empty"),
        ("user", "", "not empty"),
        ("encrypt-to", "", "not empty"),
        ("mask", "names", "addresses or homes"),
        ("rotate-size", "100", "number of bytes"),
        ("rotate-age", "daily", "number of seconds"),
        ("max-cpu", "0", "number of percent, more than 0"),
        ("max-cpu", "nan", "number of percent, more than 0"),
        ("rotate-keep", "-1", "whole number from 0"),
        ("rotate-compression", "xz", "zstd, gzip or none"),
        ("pid", "x", "whole number from 1"),
        ("exclude-pid", "-4", "whole number from 1"),
        ("port", "0", "from 1 to 65535"),
        ("exclude-port", "70000", "from 1 to 65535"),
        ("body-limit", "4k", "whole number from 0"),
        ("count", "1.5", "whole number from 1"),
        ("duration", "inf", "number of seconds"),
        ("stream-interval", "nan", "number of seconds"),
        ("metrics-address", "9090", "HOST:PORT"),
        ("metrics-config", "", "not empty"),
        ("route", "users", "path that begins with /"),
        ("log-format", "xml", "text or json"),
    ],
)
def test_a_wrong_value_names_the_option_and_what_is_right(name: str, bad: str, right: str, tmp_path: Path) -> None:
    text = refusal(f"--{name}={bad}")
    assert f"--{name}" in text and repr(bad) in text and right in text
    path = write(tmp_path, f'{name} = "{bad}"')
    text = refusal("--config", path)
    assert path in text and name in text and right in text
    if bad:  # an empty variable is one that is not set
        variable = f"NETPROFILER_{name.replace('-', '_').upper()}"
        text = refusal(environment={variable: bad})
        assert variable in text and right in text


def test_every_option_with_a_value_has_a_wrong_one_tested() -> None:
    (mark,) = [
        mark
        for mark in test_a_wrong_value_names_the_option_and_what_is_right.pytestmark  # type: ignore[attr-defined]
        if mark.name == "parametrize"
    ]
    assert {row[0] for row in mark.args[1]} == set(PROPER)


def test_repeated_options() -> None:
    assert config("--port", "80", "--port", "8080").port == (80, 8080)
    assert config(environment={"NETPROFILER_PORT": "80,8080,"}).port == (80, 8080)


def test_repeated_options_in_the_file(tmp_path: Path) -> None:
    made = config("--config", write(tmp_path, 'port = [80, 8080]\nexclude-comm = "sshd"\nredact = ["x-one", "x-two"]'))
    assert made.port == (80, 8080)
    assert made.exclude_comm == ("sshd",)
    assert made.redact == ("x-one", "x-two")


def test_a_source_replaces_the_one_below_and_does_not_add_to_it(tmp_path: Path) -> None:
    path = write(tmp_path, "port = [80]")
    assert config("--config", path, "--port", "81").port == (81,)


def test_numbers_in_the_file_need_no_quotes(tmp_path: Path) -> None:
    made = config("--config", write(tmp_path, "body_limit = 10\nstream-interval = 0.5\npid = 1"))
    assert (made.body_limit, made.stream_interval, made.pid) == (10, 0.5, (1,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "colour: there is no such option"),
        ("body-limit = [1, 2]", "write a single value"),
        ("body-limit = true", "write a single value"),
        ("[body-limit]\nx = 1", "write a single value"),
        ("body-limit = ", "not TOML"),
        ("port = [true]", "whole number"),
        ("command = 'x'", "there is no such option"),
        ("config = 'x'", "there is no such option"),
    ],
)
def test_a_wrong_file(text: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    error = refusal("--config", path)
    assert path in error and said in error


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    assert "No such file" in refusal("--config", str(tmp_path / "none"))
    assert "directory" in refusal("--config", str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "not TOML" in refusal("--config", str(tmp_path / "binary"))


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "body-limit = 7")
    assert config(environment={"NETPROFILER_CONFIG": path}).body_limit == 7
    other = tmp_path / "other.toml"
    other.write_text("body-limit = 8")
    assert config("--config", str(other), environment={"NETPROFILER_CONFIG": path}).body_limit == 8


def test_opt_in_without_a_name_and_with_values_alone() -> None:
    assert config("--opt-in").opt_in == "ADI_PROFILE"
    assert config("--opt-in-values", "a").opt_in == "ADI_PROFILE"
    assert config("--opt-in", "--opt-in-values", "a,b").opt_in_values == ("a", "b")
    assert config().opt_in is None


def test_opt_in_may_be_true_in_the_file(tmp_path: Path) -> None:
    assert config("--config", write(tmp_path, "opt-in = true")).opt_in == "ADI_PROFILE"
    assert config("--config", write(tmp_path, "opt-in = false")).opt_in is None


def test_the_names_of_another_profiler_are_known_where_ours_are_not_set() -> None:
    theirs = {
        "OUTPUT_PATH": "log",
        "ENV_OUTPUT_PATH": "env.yml",
        "ENV_PREFIX_LIST": "A_,B_",
        "CONTAINERD_SOCKET": "/run/containerd/containerd.sock",
        "CONTAINERD_NAMESPACE": "k8s.io",
        "ADI_PROFILE_ALLOWED": "local,dev",
    }
    made = config(environment=theirs)
    assert made == Config(
        output="log",
        env_output="env.yml",
        env_prefix=("A_", "B_"),
        container_socket=("/run/containerd/containerd.sock",),
        container_namespace=("k8s.io",),
        opt_in="ADI_PROFILE",
        opt_in_values=("local", "dev"),
    )
    ours = {"NETPROFILER_ENV_OUTPUT": "mine", "NETPROFILER_OPT_IN": "MINE", "NETPROFILER_CONTAINER_NAMESPACE": "x"}
    made = config(environment={**theirs, **ours})
    assert (made.env_output, made.opt_in, made.opt_in_values, made.container_namespace) == ("mine", "MINE", (), ("x",))


def test_adi_profile_allowed_set_to_nothing_turns_opt_in_on() -> None:
    made = config(environment={"ADI_PROFILE_ALLOWED": ""})
    assert (made.opt_in, made.opt_in_values) == ("ADI_PROFILE", ())


def test_output_path() -> None:
    assert config(environment={"OUTPUT_PATH": "log"}).output == "log"
    assert config(environment={"OUTPUT_PATH": ""}).output is None
    assert config(environment={"OUTPUT_PATH": "log", "NETPROFILER_OUTPUT": "better"}).output == "better"
    assert config("--output", "best", environment={"OUTPUT_PATH": "log"}).output == "best"


def test_output_and_no_output_exclude_each_other(tmp_path: Path) -> None:
    assert "--no-output" in refusal("--output", "x", "--no-output")
    assert "--max-cpu" in refusal("--max-cpu", "10", "--no-output")
    assert "--no-output" in refusal("--config", write(tmp_path, "output = 'x'\nno-output = true"))


def test_the_command() -> None:
    assert config(command=("curl", "-s")).command == ("curl", "-s")


def test_what_only_a_capture_has_is_unknown_to_a_replay() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, capture=False)
    known = {name for action in parser._actions for name in action.option_strings}
    for option in OPTIONS:
        assert (f"--{option.name}" in known) is not option.capture_only
