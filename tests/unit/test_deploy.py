"""What the compose files, the Kubernetes manifest and the chart promise, checked without any of these at hand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from netprofiler.config import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml", ROOT / "stacks" / "bookinfo" / "docker-compose.yml")
MANIFEST = ROOT / "deploy" / "kubernetes" / "daemonset.yaml"
CHART = ROOT / "deploy" / "kubernetes" / "chart" / "netprofiler"
# What SYS_ADMIN stands for where the engine does not know these two.
CAPABILITIES = {"BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH"}

# Of the Kubernetes API (v1.23 and later), what a DaemonSet of ours may have, and of which type each is.
POD: dict[str, Any] = {
    "serviceAccountName": str,
    "automountServiceAccountToken": bool,
    "hostPID": bool,
    "nodeSelector": dict,
    "tolerations": list,
    "terminationGracePeriodSeconds": int,
    "containers": list,
    "volumes": list,
}
CONTAINER: dict[str, Any] = {
    "name": str,
    "image": str,
    "imagePullPolicy": str,
    "args": list,
    "ports": list,
    "readinessProbe": dict,
    "livenessProbe": dict,
    "resources": dict,
    "securityContext": dict,
    "volumeMounts": list,
}


def check_keys(value: dict[str, Any], allowed: dict[str, Any]) -> None:
    for name, item in value.items():
        assert name in allowed, name
        assert isinstance(item, allowed[name]), name


def check_options(arguments: list[str]) -> None:
    names = {f"--{option.name}" for option in OPTIONS}
    for argument in arguments:
        assert argument.partition("=")[0] in names, argument


def check_daemonset(daemonset: dict[str, Any]) -> None:
    assert (daemonset["apiVersion"], daemonset["kind"]) == ("apps/v1", "DaemonSet")
    check_keys(daemonset["spec"], {"selector": dict, "updateStrategy": dict, "template": dict})
    template = daemonset["spec"]["template"]
    selected = daemonset["spec"]["selector"]["matchLabels"]
    assert selected.items() <= template["metadata"]["labels"].items(), "it would not find its pods"
    assert all(isinstance(text, str) for text in template["metadata"]["annotations"].values())
    pod = template["spec"]
    check_keys(pod, POD)
    assert pod["hostPID"] is True
    [container] = pod["containers"]
    check_keys(container, CONTAINER)
    check_options(container["args"])
    security = container["securityContext"]
    assert security["privileged"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert set(security["capabilities"]["add"]) == CAPABILITIES
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    assert any(argument.endswith(f":{ports['metrics']}") for argument in container["args"])


def test_the_manifest_is_what_the_api_takes() -> None:
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    assert [document["kind"] for document in documents] == ["Namespace", "ServiceAccount", "DaemonSet"]
    check_daemonset(documents[-1])
    assert documents[1]["metadata"]["name"] == documents[-1]["spec"]["template"]["spec"]["serviceAccountName"]


def render(**changes: Any) -> list[dict[str, Any]]:
    """The chart's template, by what it uses of Helm's language: no more than this is understood."""
    values = yaml.safe_load((CHART / "values.yaml").read_text()) | changes
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    text = (CHART / "templates" / "daemonset.yaml").read_text()
    scope = {
        "Values": values,
        "Chart": {"AppVersion": chart["appVersion"]},
        "Release": {"Name": "np", "Namespace": "ns"},
    }

    def look_up(path: str, dot: Any) -> Any:
        if path == ".":
            return dot
        value: Any = scope
        for name in path.strip(".").split("."):
            value = value[name]
        return value

    def evaluate(expression: str, dot: Any) -> str:
        first, *pipes = [part.strip() for part in expression.split("|")]
        value = yaml.safe_dump(dot).rstrip() if first == "toYaml ." else look_up(first, dot)
        for pipe in pipes:
            name, *rest = pipe.split()
            if name == "quote":
                value = f'"{value}"'
            elif name == "default":
                value = value or look_up(rest[0], dot)
            elif name == "nindent":
                value = "\n" + "\n".join(" " * int(rest[0]) + line for line in str(value).splitlines())
            else:
                raise AssertionError(pipe)
        return str(value)

    tokens = re.split(r"(\s*\{\{-.*?\}\}|\{\{.*?\}\})", text)

    def run(position: int, dot: Any, *, on: bool) -> tuple[str, int, str]:
        """Up to the `end` or `else` that closes the block: its text, where that is, and which it is."""
        out = ""
        while position < len(tokens):
            token = tokens[position]
            position += 1
            if "{{" not in token:
                out += token if on else ""
                continue
            expression = token[token.index("{{") + 2 : -2].lstrip("-").strip()
            word, _, rest = expression.partition(" ")
            if word in ("end", "else"):
                return out, position, word
            if word in ("if", "with", "range"):
                value = look_up(rest, dot)
                items = (value if word == "range" else [value]) if value else []
                start = position
                _, position, closed = run(start, dot, on=False)
                for item in items if on else []:
                    body, _, _ = run(start, item if word != "if" else dot, on=True)
                    out += body
                if closed == "else":
                    otherwise, position, _ = run(position, dot, on=on and not items)
                    out += otherwise
            elif on:
                out += evaluate(expression, dot)
        return out, position, ""

    return list(yaml.safe_load_all(run(0, None, on=True)[0]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"logPath": ""},
        {
            "nodeSelector": {"pool": "web"},
            "tolerations": [],
            "extraArgs": ["--container-label=app=shop", "--no-raw-payload"],
        },
        {"metrics": {"port": 9999}, "image": {"repository": "r/n", "tag": "7", "pullPolicy": "Always"}},
    ],
)
def test_the_chart_renders_to_what_the_api_takes(changes: dict[str, Any]) -> None:
    account, daemonset = render(**changes)
    assert account["metadata"] == {"name": "np", "namespace": "ns"}
    check_daemonset(daemonset)
    container = daemonset["spec"]["template"]["spec"]["containers"][0]
    assert ("--no-output" in container["args"]) is (changes.get("logPath") == "")
    assert changes.get("extraArgs", []) == container["args"][3:]
    assert container["image"] == ("r/n:7" if "image" in changes else "netprofiler:0.1.0")


def test_the_chart_and_the_manifest_say_the_same() -> None:
    rendered = render()[-1]["spec"]["template"]["spec"]["containers"][0]
    written = list(yaml.safe_load_all(MANIFEST.read_text()))[-1]["spec"]["template"]["spec"]["containers"][0]
    assert rendered == written


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.parent.name)
def test_the_agent_in_compose_is_given_what_it_needs_and_no_more(path: Path) -> None:
    agent = yaml.safe_load(path.read_text())["services"]["netprofiler"]
    assert "privileged" not in agent
    assert agent["pid"] == "host"
    assert agent["cap_drop"] == ["ALL"]
    stands_for = {"SYS_ADMIN": {"BPF", "PERFMON"}}
    assert set().union(*(stands_for.get(name, {name}) for name in agent["cap_add"])) == CAPABILITIES
    check_options(agent["command"])


def test_prometheus_and_grafana_are_provisioned_with_files_that_are_there() -> None:
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    assert job["honor_labels"] is True
    services = yaml.safe_load(COMPOSE[0].read_text())["services"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert f"--metrics-address=0.0.0.0:{port}" in services[host]["command"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["observability"]
        for mount in services[name]["volumes"]:
            assert (ROOT / mount.split(":")[0]).is_dir(), mount
    provisioning = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    [provider] = yaml.safe_load((provisioning / "dashboards/netprofiler.yml").read_text())["providers"]
    assert any(mount.split(":")[1] == provider["options"]["path"] for mount in services["grafana"]["volumes"])
    assert list((ROOT / "dashboards").glob("*.json"))
