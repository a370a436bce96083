from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import bcrypt
import pytest

from netprofiler.errors import CommandError, ExitCode
from netprofiler.metrics.web_config import is_password, load

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificate")
    arguments = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    more = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(directory / "key"),
        "-out",
        str(directory / "cert"),
    ]
    subprocess.run([*arguments.split(), *more], check=True, capture_output=True)
    return directory


def written(directory: Path, text: str) -> str:
    path = directory / "web.yml"
    path.write_text(text)
    return str(path)


def test_an_empty_file_asks_for_nothing(tmp_path: Path) -> None:
    config = load(written(tmp_path, ""))
    assert (config.tls, config.users, config.headers) == (None, {}, {})


def test_files_are_relative_to_the_file_that_names_them(certificate: Path) -> None:
    config = load(written(certificate, "tls_server_config: {cert_file: cert, key_file: key}"))
    assert config.tls is not None
    assert config.tls.minimum_version == ssl.TLSVersion.TLSv1_2
    assert config.tls.verify_mode == ssl.CERT_NONE
    assert config.files == (str(certificate / "web.yml"), str(certificate / "cert"), str(certificate / "key"))


def test_client_certificates_and_versions_are_as_asked(certificate: Path) -> None:
    text = """
tls_server_config:
  cert_file: cert
  key_file: key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: cert
  min_version: TLS13
http_server_config:
  http2: true
  headers: {X-Frame-Options: deny}
"""
    config = load(written(certificate, text))
    assert config.tls is not None
    assert (config.tls.verify_mode, config.tls.minimum_version) == (ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_3)
    assert config.headers == {"X-Frame-Options": "deny"}


def test_users_have_bcrypt_hashes(tmp_path: Path) -> None:
    config = load(written(tmp_path, f"basic_auth_users:\n  ann: {HASH}\n"))
    assert is_password(b"secret", config.users["ann"])
    assert not is_password(b"Secret", config.users["ann"])
    assert not is_password(b"secret", None)
    assert not is_password(b"secret\0", config.users["ann"])
    assert not is_password(b"", config.users["ann"])
    assert not is_password(b"secret" + b"x" * 100, config.users["ann"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "is not YAML"),
        ("- a", "is no table"),
        ("a: b", "a: there is no such setting"),
        ("tls_server_config: {cert_file: cert}", "go together"),
        ("tls_server_config: {cert_file: [1], key_file: key}", "is no path"),
        ("tls_server_config: {cert_file: none, key_file: key}", "certificate"),
        ("tls_server_config: {cert_file: key, key_file: cert}", "certificate"),
        ("tls_server_config: {cert_file: cert, key_file: key, cipher_suites: [X]}", "cipher_suites"),
        (
            "tls_server_config: {cert_file: cert, key_file: key, client_auth_type: RequestClientCert}",
            "client_auth_type",
        ),
        (
            "tls_server_config: {cert_file: cert, key_file: key, client_auth_type: RequireAndVerifyClientCert}",
            "client_ca",
        ),
        ("tls_server_config: {cert_file: cert, key_file: key, min_version: SSL3}", "min_version"),
        ("http_server_config: {headers: {X-Own: a}}", "X-Own"),
        ('http_server_config: {headers: {X-Frame-Options: "a\\r\\nb"}}', "no header value"),
        ("basic_auth_users: [a]", "basic_auth_users"),
        ("basic_auth_users: {ann: secret}", "ann"),
        (f'basic_auth_users: {{"a:b": "{HASH}"}}', "a:b"),
    ],
)
def test_what_is_wrong_is_named(certificate: Path, text: str, says: str) -> None:
    with pytest.raises(CommandError, match=says) as caught:
        load(written(certificate, text))
    assert caught.value.exit_code == ExitCode.USAGE
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"none\.yml: No such file"):
        load(str(tmp_path / "none.yml"))
