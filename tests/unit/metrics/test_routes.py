import re

import pytest

from netprofiler.errors import CommandError
from netprofiler.metrics.routes import (
    SEGMENT_MAX_CHARACTERS,
    SEGMENTS_MAX,
    RoutePatterns,
    authority_of,
    guess_route,
    path_of,
)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a/b?c=/d", "/a/b"),
        ("/a#b", "/a"),
        ("http://example.org/a?b", "/a"),
        ("http://example.org", "/"),
        ("*", ""),
        ("example.org:443", ""),
        ("", ""),
        ("//double//slash", "//double//slash"),
    ],
)
def test_path_is_what_follows_the_authority_without_the_query(target: str, path: str) -> None:
    assert path_of(target) == path


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        ("http://example.org/a", "example.org"),
        ("http://user:secret@example.org:81?x", "example.org:81"),
        ("/http://a/", ""),
        ("*", ""),
    ],
)
def test_authority_is_that_of_an_absolute_target_without_the_user(target: str, authority: str) -> None:
    assert authority_of(target) == authority


@pytest.mark.parametrize(
    "path",
    ["/", "/users", "/api/v1/orders", "/v2/", "/oauth2/token", "/s3/list", "/healthz", "/.well-known/openid-configuration",
     "/app.js", "/jquery-3.min.js", "/facade/decade", "/user-settings", "/a/b/c/d/e/f/g/h", "//", "/QUERY", "/cafe"],
)  # fmt: skip
def test_words_stay(path: str) -> None:
    assert guess_route(path) == path


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/users/4711", "/users/{id}"),
        ("/users/4711/orders/12", "/users/{id}/orders/{id}"),
        ("/o/550e8400-e29b-41d4-a716-446655440000", "/o/{id}"),
        ("/o/550e8400e29b41d4a716446655440000/x", "/o/{id}/x"),
        ("/blob/4f2a9c1", "/blob/{id}"),
        ("/static/app.4fa3b2c1.js", "/static/{id}"),
        ("/t/aB3xY7kQ", "/t/{id}"),
        ("/2026-11-21/log", "/{id}/log"),
        ("/at/10.0.0.1", "/at/{id}"),
        ("/item-12345", "/{id}"),
        ("/reset/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "/reset/{id}"),
        ("/who/ann%40example.org", "/who/{id}"),
        ("/who/ann@example.org", "/who/{id}"),
        ("/title/" + "long-" * 10, "/title/{id}"),
        ("/a b", "/{id}"),
        ("/\ud800\u2028\x00", "/{id}"),
        ("/a/b/c/d/e/f/g/h/i/j", "/a/b/c/d/e/f/g/h/*"),
    ],
)
def test_what_varies_is_taken_out(path: str, route: str) -> None:
    assert guess_route(path) == route


def test_a_route_is_short_whatever_the_path() -> None:
    longest = (SEGMENT_MAX_CHARACTERS + 1) * SEGMENTS_MAX + len("/*")
    for path in ("/" * 100_000, "/" + "a" * 100_000, "/a" * 50_000, "/" + "a/" * 7 + "%" * 100_000):
        assert len(guess_route(path)) <= longest


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/users/{name}", "/users/ann", True),
        ("/users/{name}", "/users/ann/orders", False),
        ("/users/{name}", "/users/", False),
        ("/users/:name/orders", "/users/ann/orders", True),
        ("/files/*", "/files/a/b/c", True),
        ("/files/*", "/files", True),
        ("/files/*", "/filesystem", False),
        ("/*/list", "/a/list", True),
        ("/*/list", "/a/b/list", False),
        ("/a.b", "/axb", False),
        ("/*", "/", True),
    ],
)
def test_a_pattern_names_the_paths_that_fit_it(pattern: str, path: str, fits: bool) -> None:
    assert RoutePatterns([pattern]).match(path) == (pattern if fits else None)


def test_the_first_pattern_that_fits_counts() -> None:
    patterns = RoutePatterns(["/a/b", "/a/{x}", "/*"])
    assert [patterns.match(path) for path in ("/a/b", "/a/c", "/c")] == ["/a/b", "/a/{x}", "/*"]


@pytest.mark.parametrize("pattern", ["", "users", "*"])
def test_a_pattern_that_is_no_path_is_refused(pattern: str) -> None:
    with pytest.raises(CommandError, match=re.escape("begins with /")):
        RoutePatterns([pattern])
