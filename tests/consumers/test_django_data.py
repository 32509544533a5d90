"""Goal: a login is found in what Django has written of its session, and nowhere else. Method: Django's own writers."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import os
import pickle
import zlib
from typing import Any

import pytest
from django.contrib.sessions.serializers import JSONSerializer
from django.core.cache.backends.redis import RedisSerializer
from django.core.signing import TimestampSigner
from hypothesis import given
from hypothesis import strategies as st

from lapse.consumers.frameworks.django_data import DATA, Unreadable, login_in_cache, login_in_row

LOGIN = {"id": "Zm9vYmFyYmF6cXV4MTIzNA", "tenant": None, "at": 1_764_000_000_000}


def row(session: Any) -> str:
    """Return `session_data`, as Django's SessionBase.encode does."""
    signer = TimestampSigner(key="a secret that the applier does not know", salt="any", fallback_keys=[])
    written: str = signer.sign_object(session, serializer=JSONSerializer, compress=True)
    return written


def in_cache(session: Any, protocol: int | None = None) -> bytes:
    written: bytes = RedisSerializer(protocol).dumps(session)
    return written


_TEXTS = st.sampled_from([DATA, "id", "Ì\x06_lapse", LOGIN["id"]]) | st.text(max_size=8)
_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)


def expected(session: dict[str, Any]) -> str | None:
    login = session.get(DATA)
    found = login.get("id") if isinstance(login, dict) else None
    return found if isinstance(found, str) else None


@given(st.dictionaries(_TEXTS, _PLAIN, max_size=5), st.booleans(), st.integers(1, 5))
def test_the_login_is_read_wherever_it_stands_and_nowhere_else(
    session: dict[str, Any], is_login: bool, protocol: int
) -> None:
    if is_login:
        session[DATA] = dict(LOGIN)
    assert login_in_row(row(session)) == expected(session)
    assert login_in_cache(in_cache(session, protocol)) == expected(session)
    assert login_in_cache(json.dumps(session).encode()) == expected(session)


def test_a_row_is_read_compressed_or_not() -> None:
    short, long = row({DATA: {"id": LOGIN["id"]}}), row({DATA: LOGIN, "cart": ["apples"] * 100})
    assert (short.startswith("."), long.startswith(".")) == (False, True)
    assert {login_in_row(short), login_in_row(long)} == {LOGIN["id"]}


class _Basket:
    def __init__(self) -> None:
        self.items = {DATA: {"id": "of the basket"}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_else_is_in_a_pickle_is_passed_over(protocol: int) -> None:
    things = [
        datetime.datetime.now(datetime.UTC), decimal.Decimal("1.5"), {1, 2}, frozenset({3}), (), (1, 2, 3, 4),
        _Basket(), b"bytes", bytearray(b"x"), 10**30, {2: "two", (1,): "pair"}, type, datetime.timedelta(1),
        {"id": "nested"},
    ]  # fmt: skip
    session = {"id": "first", "before": things, DATA: LOGIN, "behind": things, "again": {"id": LOGIN["id"]}}
    assert login_in_cache(in_cache(session, protocol)) == LOGIN["id"]


class _Made:
    """What a forger puts into a cache: to load it is to run it."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def test_nothing_in_a_pickle_is_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert login_in_cache(pickle.dumps({"x": _Made(), DATA: LOGIN})) == LOGIN["id"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no payload",
        "::",
        "é:1:2",
        ".e30:1sX:sig",
        base64.urlsafe_b64encode(b"[1]").decode() + ":1sX:sig",
        base64.urlsafe_b64encode(b'{"_lapse"').decode() + ":1sX:sig",
        base64.urlsafe_b64encode(b'{"_lapse":' + b"[" * 100_000).decode() + ":1sX:sig",
        "." + base64.urlsafe_b64encode(zlib.compress(b" " * 100_000_000)).decode() + ":1sX:sig",
    ],
)
def test_what_is_no_row_of_djangos_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        login_in_row(text)


_COMPRESSED = zlib.compress(pickle.dumps({DATA: LOGIN}))


@pytest.mark.parametrize("value", [b"", b"x", b'{"_lapse"', _COMPRESSED, b"\x80\x05_lapse", b"\x80\x05h\x01_lapse."])
def test_what_is_no_cached_session_is_unreadable(value: bytes) -> None:
    with pytest.raises(Unreadable):
        login_in_cache(value)
