"""netprofiler.redaction: secrets leave no trace."""

from __future__ import annotations

import pytest

from netprofiler.redaction import Redactor


@pytest.mark.parametrize(
    ("target", "expected", "names"),
    [
        ("/a?token=s3cret", "/a?token=[redacted]", ("token",)),
        ("/a?b=c&api_key=s3cret&d=e", "/a?b=c&api_key=[redacted]&d=e", ("api_key",)),
        ("/a?X-Amz-Signature=s3cret#f", "/a?X-Amz-Signature=[redacted]#f", ("X-Amz-Signature",)),
        ("/a?a=1;Password=s3cret", "/a?a=1;Password=[redacted]", ("Password",)),
        ("/a?to%6ben=s3cret", "/a?to%6ben=[redacted]", ("to%6ben",)),
        ("/a?token=s3cret&token=s3cret", "/a?token=[redacted]&token=[redacted]", ("token",)),
        ("http://h/a?sid=s3cret", "http://h/a?sid=[redacted]", ("sid",)),
        ("/a?token=&x=1", "/a?token=&x=1", ()),
        ("/token=a", "/token=a", ()),
        ("/a?tokens=1", "/a?tokens=1", ()),
        ("/a", "/a", ()),
    ],
)
def test_targets(target: str, expected: str, names: tuple[str, ...]) -> None:
    assert Redactor().target(target) == (expected, names)


def test_blocks_of_header_lines() -> None:
    raw = (
        "Host: a\r\nAUTHORIZATION:  Basic s3cret\r\nCookie : s3cret\nX-Note: Authorization: no\r\n"
        "set-cookie: s3cret;\r\n  s3cret\r\n\ts3cret\r\nLast: b\r\n\r\n"
    )
    assert Redactor().block(raw) == (
        "Host: a\r\nAUTHORIZATION: [redacted]\r\nCookie : [redacted]\nX-Note: Authorization: no\r\n"
        "set-cookie: [redacted]\r\nLast: b\r\n\r\n"
    )


def test_a_folded_line_of_what_is_no_secret_stays() -> None:
    assert Redactor().block("A: b\r\n c\r\n\r\n") == "A: b\r\n c\r\n\r\n"


def test_names_of_the_users_own() -> None:
    redactor = Redactor(["X-Internal", "pin_code"])
    assert redactor.is_secret_header("x-internal")
    assert redactor.is_secret_header("Cookie")
    assert not redactor.is_secret_header("Host")
    assert redactor.target("/?PinCode=1234")[0] == "/?PinCode=[redacted]"


@pytest.mark.parametrize("name", ["accessToken", "access_token", "setCookie", "x_api_key", "Authorization", "pinCode"])
def test_fields_of_bodies_are_secret_as_headers_and_parameters_are(name: str) -> None:
    assert Redactor(["pin-code"]).is_secret_field(name)
    assert not Redactor(["pin-code"]).is_secret_field(f"{name}s")
    assert not Redactor(["pin-code"], enabled=False).is_secret_field(name)


def test_disabled() -> None:
    redactor = Redactor(enabled=False)
    assert not redactor.is_secret_header("Authorization")
    assert redactor.target("/?token=a") == ("/?token=a", ())
    assert redactor.block("Cookie: a\r\n") == "Cookie: a\r\n"
