"""The servers of others, each with a configuration of our own in a temporary directory and an access log that we define."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.real.harness.programs import PYTHON, REPOSITORY, SCRIPTS, Program, require

NGINX = """
user root;
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log {dir}/nginx-error.log notice;
events {{ worker_connections 256; }}
http {{
    log_format truth escape=json '{{"method":"$request_method","target":"$request_uri","status":$status,'
        '"response_body_bytes":$body_bytes_sent,"request_body_bytes":"$content_length"}}';
    access_log {dir}/access.log truth;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    default_type text/plain;
    client_max_body_size 8m;
    sendfile {sendfile};
    {extra}
}}
"""


def nginx_static(directory: Path, port: int, root: Path, *, sendfile: bool = True, host: str = "127.0.0.1") -> Program:
    listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return _nginx(
        directory,
        f"server {{ listen {listen}; root {root}; dav_methods PUT; create_full_put_path on; }}",
        (host, port),
        sendfile=sendfile,
    )


def nginx_proxy(directory: Path, port: int, upstream: int, *, keep_alive: bool) -> Program:
    reuse = 'proxy_http_version 1.1; proxy_set_header Connection "";' if keep_alive else ""
    return _nginx(
        directory,
        f"upstream go {{ server 127.0.0.1:{upstream}; {'keepalive 4;' if keep_alive else ''} }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://go; {reuse} }} }}",
        ("127.0.0.1", port),
        sendfile=True,
    )


def _nginx(directory: Path, extra: str, address: tuple[str, int], *, sendfile: bool) -> Program:
    [nginx] = require("nginx")
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(dir=directory, extra=extra, sendfile="on" if sendfile else "off"))
    error_log = directory / "nginx-early.log"
    return Program(
        [nginx, "-c", config, "-p", directory, "-e", error_log],
        directory,
        name="nginx",
        address=address,
        stop_signal=signal.SIGTERM,
    )


APACHE_MODULES = "/usr/lib/apache2/modules"
APACHE = """
ServerRoot {dir}
ServerName localhost
PidFile {dir}/apache.pid
Mutex file:{dir}
DefaultRuntimeDir {dir}
Listen 127.0.0.1:{port}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
StartServers 1
ThreadsPerChild 8
MaxRequestWorkers 8
MinSpareThreads 1
MaxSpareThreads 8
User www-data
Group www-data
EnableSendfile {sendfile}
ErrorLog {dir}/error.log
LogFormat "{{\\"method\\":\\"%m\\",\\"target\\":\\"%U%q\\",\\"status\\":%>s,\\"response_body_bytes\\":%B}}" truth
CustomLog {dir}/access.log truth
DocumentRoot {root}
<Directory {root}>
    Require all granted
</Directory>
"""


def apache(directory: Path, port: int, root: Path, *, sendfile: bool) -> Program:
    """Debian's Apache is built to refuse ``User root`` (BIG_SECURITY_HOLE), hence www-data, who must be able to read the root."""
    [binary] = require("apache2")
    config = directory / "apache.conf"
    config.write_text(
        APACHE.format(dir=directory, port=port, root=root, modules=APACHE_MODULES, sendfile="On" if sendfile else "Off")
    )
    return Program([binary, "-DFOREGROUND", "-f", config], directory, name="apache", address=("127.0.0.1", port))


HAPROXY = """
global
    log stdout format raw local0
    maxconn 200
defaults
    mode http
    log global
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    timeout http-keep-alive 20s
    option http-keep-alive
    option http-ignore-probes
    option dontlognull
frontend front
    bind 127.0.0.1:{port}
    log-format '{{"method":"%HM","target":"%HU","status":%ST}}'
    default_backend go
backend go
    server go 127.0.0.1:{upstream}
"""


def haproxy(directory: Path, port: int, upstream: int) -> Program:
    [binary] = require("haproxy")
    config = directory / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, upstream=upstream))
    return Program([binary, "-db", "-f", config], directory, name="haproxy", address=("127.0.0.1", port))


def python_http_server(directory: Path, port: int, protocol: str) -> Program:
    return Program(
        [PYTHON, SCRIPTS / "http_server.py", str(port), protocol],
        directory,
        name="http.server",
        address=("127.0.0.1", port),
    )


def gunicorn(directory: Path, *, bind: str, address: tuple[str, int] | str) -> Program:
    log_format = '{"line":"%(r)s","status":%(s)s,"response_body_bytes":%(B)s}'
    return Program(
        [
            *(PYTHON, "-m", "gunicorn", "--bind", bind, "--worker-class", "gthread", "--threads", "4"),
            *("--keep-alive", "20", "--access-logfile", "-", "--access-logformat", log_format),
            *("--worker-tmp-dir", directory, "--no-control-socket", "tests.real.programs.wsgi_app:app"),
        ],
        directory,
        name="gunicorn",
        address=address,
        env={"PYTHONPATH": str(REPOSITORY)},
    )


def node_server(directory: Path, port: int) -> Program:
    [node] = require("node")
    return Program([node, SCRIPTS / "node_server.js", str(port)], directory, name="node", address=("127.0.0.1", port))


JAVA_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m", "-Xshare:auto")


def java_classes(directory: Path) -> Path:
    """Compiled once a session; a source launch would compile at each start."""
    [javac] = require("javac")
    subprocess.run([javac, "-d", directory, SCRIPTS / "Server.java", SCRIPTS / "Client.java"], check=True, timeout=60)
    return directory


def java_server(directory: Path, port: int, classes: Path) -> Program:
    [java] = require("java")
    return Program(
        [java, *JAVA_FLAGS, "-cp", classes, "Server", str(port)],
        directory,
        name="java",
        address=("127.0.0.1", port),
    )


def build_go(package: str, directory: Path) -> Path:
    """``server`` or ``traffic`` of this repository, as a binary in ``directory``."""
    binary = directory / package
    [go] = require("go")
    done = subprocess.run(
        [go, "build", "-o", binary, "."],
        cwd=REPOSITORY / package,
        env={**os.environ, "CGO_ENABLED": "0"},
        check=False,
        timeout=170,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return binary


def go_server(directory: Path, port: int, binary: Path, *, host: str = "127.0.0.1") -> Program:
    return Program(
        [binary],
        directory,
        name="go",
        address=(host, port),
        env={"HTTP_HOST": host, "HTTP_PORT": str(port), "ACCESS_LOG": str(directory / "go-access.log")},
    )
