"""Servers that speak TLS, each with an access log that tells of the handshake too."""

from __future__ import annotations

from pathlib import Path

from tests.real.harness.programs import PYTHON, REPOSITORY, SCRIPTS, Program, require
from tests.real.harness.servers import APACHE, APACHE_MODULES, HAPROXY, NGINX
from tests.real.harness.tls import Certificates

NGINX_LOG = """
    log_format tls escape=json '{{"method":"$request_method","target":"$request_uri","status":$status,'
        '"response_body_bytes":$body_bytes_sent,"request_body_bytes":"$content_length","peer_port":$remote_port,'
        '"version":"$ssl_protocol","cipher":"$ssl_cipher","sni":"$ssl_server_name","alpn":"$ssl_alpn_protocol",'
        '"resumed":"$ssl_session_reused","early":"$ssl_early_data"}}';
    server {{
        listen 127.0.0.1:{port} ssl;
        access_log {dir}/access.log tls;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols {versions};
        ssl_session_cache shared:tests:1m;
        keepalive_timeout 20s;
        keepalive_requests 1000;
        root {root};
        dav_methods PUT;
        create_full_put_path on;
        {more}
    }}
"""


def nginx(
    directory: Path, port: int, certificates: Certificates, root: Path, *, version: str | None = None, more: str = ""
) -> Program:
    """Files below ``root``; ``version`` is the only one it speaks, where given."""
    [binary] = require("nginx")
    server = NGINX_LOG.format(
        dir=directory,
        port=port,
        root=root,
        certificate=certificates.certificate,
        key=certificates.key,
        versions=f"TLSv{version}" if version else "TLSv1.2 TLSv1.3",
        more=more,
    )
    config = directory / "nginx.conf"
    config.write_text(NGINX.format(dir=directory, extra=server, sendfile="on"))
    return Program(
        [binary, "-c", config, "-p", directory, "-e", directory / "nginx-early.log"],
        directory,
        name="nginx",
        address=("127.0.0.1", port),
    )


APACHE_TLS = """
LoadModule ssl_module {modules}/mod_ssl.so
LogFormat "{{\\"method\\":\\"%m\\",\\"target\\":\\"%U%q\\",\\"status\\":%>s,\\"response_body_bytes\\":%B,\\"version\\":\\"%{{SSL_PROTOCOL}}x\\",\\"cipher\\":\\"%{{SSL_CIPHER}}x\\",\\"sni\\":\\"%{{SSL_TLS_SNI}}x\\"}}" tls
CustomLog {dir}/tls.log tls
SSLSessionCache none
KeepAliveTimeout 20
MaxKeepAliveRequests 1000
SSLEngine on
SSLProtocol -all +TLSv{version}
SSLCertificateFile {certificate}
SSLCertificateKeyFile {key}
"""


def apache(directory: Path, port: int, certificates: Certificates, root: Path, *, version: str) -> Program:
    """Its log of handshakes is ``tls.log``."""
    [binary] = require("apache2")
    config = directory / "apache.conf"
    common = APACHE.format(dir=directory, port=port, root=root, modules=APACHE_MODULES, sendfile="On")
    config.write_text(
        common
        + APACHE_TLS.format(
            dir=directory,
            modules=APACHE_MODULES,
            version=version,
            certificate=certificates.certificate,
            key=certificates.key,
        )
    )
    return Program([binary, "-DFOREGROUND", "-f", config], directory, name="apache", address=("127.0.0.1", port))


HAPROXY_LOG = (
    """log-format '{"method":"%HM","target":"%HU","status":%ST,"peer_port":%cp,"version":"%sslv","cipher":"%sslc","""
    """"sni":"%[ssl_fc_sni]","alpn":"%[ssl_fc_alpn]"}'"""
)


def haproxy(directory: Path, port: int, upstream: int, certificates: Certificates) -> Program:
    """Terminates TLS; plaintext to ``upstream``."""
    [binary] = require("haproxy")
    config = directory / "haproxy.cfg"
    lines = []
    for line in HAPROXY.format(port=port, upstream=upstream).splitlines():
        words = line.split()
        if words[:1] == ["bind"]:
            line += f" ssl crt {certificates.both} alpn http/1.1"
        elif words[:1] == ["log-format"]:
            line = "    " + HAPROXY_LOG
        lines.append(line)
    config.write_text("\n".join(lines) + "\n")
    return Program([binary, "-db", "-f", config], directory, name="haproxy", address=("127.0.0.1", port))


def python_server(
    directory: Path,
    port: int,
    certificates: Certificates,
    kind: str,
    *,
    version: str = "",
    alpn: str = "http/1.1",
    library_path: Path | None = None,
) -> Program:
    """``http.server`` with the socket wrapped, or ``asyncio`` with memory BIOs: ``programs/tls_server.py``."""
    return Program(
        [
            *(PYTHON, SCRIPTS / "tls_server.py", kind, str(port), certificates.certificate, certificates.key),
            *(version, alpn),
        ],
        directory,
        name=f"python-{kind}",
        address=("127.0.0.1", port),
        env={"PYTHONPATH": str(REPOSITORY), **({"LD_LIBRARY_PATH": str(library_path)} if library_path else {})},
    )


def uvicorn(directory: Path, port: int, certificates: Certificates) -> Program:
    return Program(
        [
            *(
                PYTHON,
                "-m",
                "uvicorn",
                "tests.real.programs.asgi_app:app",
                "--port",
                str(port),
                "--log-level",
                "warning",
            ),
            *("--http", "h11", "--loop", "asyncio", "--ssl-certfile", certificates.certificate),
            *("--ssl-keyfile", certificates.key, "--timeout-keep-alive", "20", "--no-access-log"),
        ],
        directory,
        name="uvicorn",
        address=("127.0.0.1", port),
        env={"PYTHONPATH": str(REPOSITORY)},
    )


def node_server(directory: Path, port: int, certificates: Certificates, *, version: str = "") -> Program:
    [node] = require("node")
    return Program(
        [node, SCRIPTS / "node_tls_server.js", str(port), certificates.certificate, certificates.key, version],
        directory,
        name="node",
        address=("127.0.0.1", port),
    )


def gnutls_server(directory: Path, port: int, certificates: Certificates, *, priority: str = "NORMAL") -> Program:
    """``gnutls-serv`` answers every request with a page about the handshake, and closes."""
    [binary] = require("gnutls-serv")
    return Program(
        [
            *(
                binary,
                "--http",
                "--port",
                str(port),
                "--priority",
                priority,
                "--x509certfile",
                certificates.certificate,
            ),
            *("--x509keyfile", certificates.key, "--disable-client-cert"),
        ],
        directory,
        name="gnutls-serv",
        address=("127.0.0.1", port),
    )
