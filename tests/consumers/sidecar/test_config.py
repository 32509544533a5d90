"""What is a sidecar told? Goal: what cannot be is refused at start, by a sentence that names the setting."""

from pathlib import Path
from typing import Any

import pytest

from lapse.consumers import ConfigError
from lapse.consumers.sidecar.config import SidecarConfig


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({}, "whose a request is"),
        ({"cookie": "a b"}, "cookie is 'a b'"),
        ({"cookie": "sid", "subject_header": "x:y"}, "subject_header"),
        ({"cookie": "sid", "token_cookie": "sid", "jwks": "k"}, "either an id or a token"),
        ({"cookie": "sid", "token_cookie": "tok"}, "token_cookie needs"),
        ({"jwks": "k", "key_file": Path("k")}, "name one"),
        ({"jwks": "k", "bearer": False}, "taken from nowhere"),
        ({"jwks": "k", "session_claims": ()}, "session_claims"),
        ({"jwks": "k", "subject_header": "x-subject"}, "set cookie"),
        ({"jwks": "http://idp.example/jwks"}, "fetched by https"),
        ({"jwks": "k", "algorithms": ("none",)}, "'none'"),
        ({"cookie": "sid", "cookie_form": "odd"}, "cookie_form"),
        ({"cookie": "sid", "stale_routes": {"/a": "perhaps"}}, "/a=perhaps"),
        ({"cookie": "sid", "stale_routes": {"pay": "deny"}}, "'pay' is no path prefix"),
        ({"cookie": "sid", "stale_routes": {"/a/../b": "deny"}}, "no path prefix"),
        ({"cookie": "sid", "open_routes": ("/login",)}, "require_session"),
    ],
)
def test_what_cannot_be_is_refused(told: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        SidecarConfig(bootstrap_servers="127.0.0.1:1", **told)


@pytest.mark.parametrize("jwks", ["http://127.0.0.1:80/k", "http://[::1]/k", "http://localhost/k", "https://idp/k"])
def test_keys_come_by_https_or_from_this_machine(jwks: str) -> None:
    assert SidecarConfig(bootstrap_servers="127.0.0.1:1", jwks=jwks).takes_tokens


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(SidecarConfig(bootstrap_servers="k:1", cookie="sid", reference_key=b"secret"))
