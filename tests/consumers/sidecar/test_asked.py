"""What is asked about, in each proxy's words? Goal: no client can weaken its own request's rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.consumers.sidecar.asked import asked_by, plain_path
from lapse.consumers.sidecar.routes import Routes

ROUTES = Routes("allow", {"/pay": "deny", "/pay/terms": "allow"}, ["/login", "/assets/"])


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", "/"),
        (b"/pay?x=/login", "/pay"),
        (b"/a//b/", "/a/b"),
        (b"/a/./b/../c", "/a/c"),
        (b"/../../pay", "/pay"),
        (b"/%70ay", "/pay"),
        (b"https://shop.example/pay?x#y", "/pay"),
        (b"http://shop.example", None),
        (b"//pay", "/pay"),
        (b"/caf%C3%A9", "/café"),
        (b"/x/%2e%2e/pay", None),
        (b"/login/..%2fpay", None),
        (b"/login/..\\pay", None),
        (b"/login%5c..%5cpay", None),
        (b"/login/..;/pay", None),
        (b"/%252e%252e/pay", None),
        (b"/login%00", None),
        (b"/login%0a", None),
        (b"*", None),
        (b"", None),
    ],
)
def test_a_target_has_one_path_or_none(target: bytes, path: str | None) -> None:
    assert plain_path(target) == path


@given(st.binary(max_size=64))
def test_whatever_a_target_is_its_path_is_plain(target: bytes) -> None:
    path = plain_path(target)
    assert path is None or (path.startswith("/") and not {"..", "."} & set(path.split("/")) and "//" not in path)


@pytest.mark.parametrize(
    ("raw_path", "headers", "paths"),
    [
        (b"/check", [(b"x-original-uri", b"/pay?q")], ("/pay",)),
        (b"/check", [(b"x-original-url", b"https://shop/pay?q")], ("/pay",)),
        (b"/check", [(b"x-forwarded-uri", b"/pay")], ("/pay",)),
        (b"/check/pay", [], ("/pay",)),
        (b"/check/", [], ("/",)),
        (b"/check", [], ()),
    ],
)
def test_each_proxy_says_it_in_its_way(
    raw_path: bytes, headers: list[tuple[bytes, bytes]], paths: tuple[str, ...]
) -> None:
    assert asked_by("GET", raw_path, headers).paths == paths


def test_the_longest_prefix_of_whole_segments_decides() -> None:
    assert ROUTES.on_stale(["/pay"]) == ROUTES.on_stale(["/pay/now"]) == "deny"
    assert ROUTES.on_stale(["/pay/terms/1"]) == ROUTES.on_stale(["/payments"]) == "allow"
    assert Routes("deny", {"/": "allow"}, []).on_stale(["/x"]) == "allow"


@pytest.mark.parametrize("paths", [(), (None,), ("/read", "/pay"), ("/read", None)])
def test_what_is_unknown_or_contradicts_itself_gets_the_strictest_answer(paths: tuple[str | None, ...]) -> None:
    assert ROUTES.on_stale(paths) == "deny"
    assert not ROUTES.is_open((*paths, "/pay"))


def test_a_client_that_names_another_path_opens_nothing() -> None:
    honest = (b"x-forwarded-uri", b"/pay")
    forged = (b"x-original-uri", b"/login")
    for headers in ([honest, forged], [forged, honest]):
        assert not ROUTES.is_open(asked_by("GET", b"/check", headers).paths)
    assert not ROUTES.is_open(asked_by("GET", b"/check/pay", [forged]).paths)
    assert ROUTES.is_open(asked_by("GET", b"/check/login/step", []).paths)
    assert ROUTES.is_open(asked_by("GET", b"/check/assets/a.css", []).paths)
    assert not ROUTES.is_open(())


PREFLIGHT = [(b"origin", b"https://a"), (b"access-control-request-method", b"PUT")]


def test_a_preflight_is_one_only_where_all_say_so() -> None:
    nginx = [(b"x-original-uri", b"/"), (b"x-original-method", b"OPTIONS"), *PREFLIGHT]
    assert asked_by("GET", b"/check", nginx).is_preflight
    assert asked_by("OPTIONS", b"/check/", PREFLIGHT).is_preflight
    assert not asked_by("OPTIONS", b"/check", PREFLIGHT).is_preflight, "nothing says what it was"
    assert not asked_by("POST", b"/check/", [*nginx]).is_preflight, "a client forged another proxy's words"
    forged = [(b"x-original-uri", b"/"), (b"x-forwarded-method", b"OPTIONS"), *PREFLIGHT]
    assert not asked_by("GET", b"/check", forged).is_preflight
    assert not asked_by("OPTIONS", b"/check/", PREFLIGHT[:1]).is_preflight


def test_background_is_the_one_word() -> None:
    assert asked_by("GET", b"/check", [(b"x-lapse-background", b" 1 ")]).is_background
    assert not asked_by("GET", b"/check", [(b"x-lapse-background", b"0")]).is_background
