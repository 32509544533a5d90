"""Is a token genuine? Real keys and signatures; the clock is set where it matters."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from lapse.consumers import ConfigError, session_reference
from lapse.consumers.frameworks.identity import of_claims
from lapse.consumers.sidecar.config import SidecarConfig
from lapse.consumers.sidecar.keys import KeyRing, read_key, read_key_set
from lapse.consumers.sidecar.tokens import Claims, RefusedToken, Tokens

from tests.consumers.sidecar.support import Asking, bearer, claims, config, key_set_file, signed
from tests.consumers.support import until

KEY = ECKey.generate_key("P-256", {"kid": "one"})
OTHER = ECKey.generate_key("P-256", {"kid": "two"})
SECRET = OctKey.import_key("0123456789abcdef0123456789abcdef")


async def _ring(path: Path) -> KeyRing:
    ring = KeyRing(lambda: read_key_set(str(path)), str(path), 3_600)
    await ring.start()
    await ring.stop()
    return ring


async def _tokens(path: Path, now: Any = time.time, **told: Any) -> Tokens:
    key_set_file(path / "jwks.json", KEY)
    return Tokens(config(jwks="unused", **told), await _ring(path / "jwks.json"), now)


async def test_a_genuine_token_says_whose_session_it_is(tmp_path: Path) -> None:
    tokens = await _tokens(tmp_path, tenant_claim="org")
    said = claims(org="acme", jti="t-9", auth_time=1_700_000_000)
    for _ in range(2):  # the second time it is known
        assert await tokens.read(signed(KEY, said)) == Claims("s-1", "u-1", "acme", 1_700_000_000_000)


async def test_claims_are_mapped_and_jti_stands_in_for_sid(tmp_path: Path) -> None:
    tokens = await _tokens(tmp_path)
    issued = int(time.time()) - 5
    assert await tokens.read(signed(KEY, claims(sid=None, jti="t-9", iat=issued))) == Claims(
        "t-9", "u-1", None, issued * 1000
    )
    mapped = await _tokens(tmp_path, session_claims=("ses",), subject_claim="uid", start_claims=("login",))
    assert await mapped.read(signed(KEY, claims(ses="x", uid="y", login=7.5))) == Claims("x", "y", None, 7_500)


@pytest.mark.parametrize(
    "said",
    [
        {"sid": "s", "iat": 1_700_000_000},
        {"sid": "s", "jti": "t", "iat": 1_700_000_000},
        {"sid": None, "jti": "t", "iat": 1_700_000_000},
        {"sid": "s", "iat": 1_700_000_000, "auth_time": 1_600_000_000},
        {"sid": None, "jti": "t", "iat": 1_700_000_000, "auth_time": 1_600_000_000},
    ],
)
@pytest.mark.parametrize("start", [None, "iat"])
async def test_a_session_has_the_same_start_as_in_services_with_a_guard_of_their_own(
    tmp_path: Path, said: dict[str, Any], start: str | None
) -> None:
    told = {} if start is None else {"start_claims": (start,)}
    here = await (await _tokens(tmp_path, **told)).read(signed(KEY, claims(**said)))
    there = of_claims(claims(**said), start=start)
    assert there is not None
    assert (here.session_id, here.subject, here.started_at) == (there.session_id, there.subject, there.started_at)


async def test_a_refreshed_token_makes_no_session_younger(tmp_path: Path) -> None:
    asking = await Asking(config(jwks=str(key_set_file(tmp_path / "k", KEY)))).keys()
    assert await asking.ask(bearer(signed(KEY, claims(iat=int(time.time()) - 5)))) == "passed"
    assert [touch.session_age_ms for touch in asking.touches()] == [None]


@pytest.mark.parametrize(
    "changed",
    [
        {"sid": None},
        {"sid": 7},
        {"sid": ""},
        {"sub": None},
        {"sub": ["u-1"]},
        {"org": "  x", "sub": ""},
        {"org": 7},
        {"exp": 1},
        {"exp": "soon"},
        {"exp": float("nan")},
        {"nbf": 32_000_000_000},
        {"iat": 32_000_000_000},
        {"auth_time": 32_000_000_000},
        {"auth_time": True},
        {"auth_time": -1},
        {"auth_time": float("inf")},
        {"iss": "https://elsewhere"},
        {"aud": ["others"]},
        {"iss": None},
        {"aud": None},
    ],
)
async def test_a_token_that_is_not_good_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    tokens = await _tokens(tmp_path, issuer="https://idp", audience="shop", tenant_claim="org")
    good = claims(iss="https://idp", aud=["shop", "billing"])
    await tokens.read(signed(KEY, good))
    with pytest.raises(RefusedToken):
        await tokens.read(signed(KEY, claims(**{**good, **changed})))


async def test_forgeries_are_refused(tmp_path: Path) -> None:
    tokens = await _tokens(tmp_path)
    good = signed(KEY, claims())
    head, body, signature = good.split(".")
    public = orjson.dumps(KEY.as_dict(private=False))
    confused = signed(OctKey.import_key(public), claims(), kid="one")  # the public key as a secret
    unsigned = "eyJhbGciOiJub25lIiwia2lkIjoib25lIn0." + body + "."
    imposter = signed(ECKey.generate_key("P-256", {"kid": "one"}), claims())
    for forged in (
        confused,
        unsigned,
        imposter,
        f"{head}.{body}.",
        f"{head}.{body}.{signature[::-1]}",
        f"{good}.x",
        "",
    ):
        with pytest.raises(RefusedToken) as refused:
            await tokens.read(forged)
        assert not refused.value.unverified
        assert "u-1" not in str(refused.value)


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda b: f"{b.hex()}.{b.hex()}.{b.hex()}"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_is_sent_is_refused_and_breaks_nothing(tmp_path: Path, text: str) -> None:
    tokens = await _tokens(tmp_path)
    with pytest.raises(RefusedToken):
        await tokens.read(text)


async def test_a_token_that_is_known_still_expires(tmp_path: Path) -> None:
    now = [time.time()]
    tokens = await _tokens(tmp_path, lambda: now[0], leeway_s=10)
    token = signed(KEY, claims(exp=int(now[0]) + 60))
    await tokens.read(token)
    now[0] += 69
    await tokens.read(token)
    now[0] += 2
    with pytest.raises(RefusedToken, match="expired"):
        await tokens.read(token)


async def test_a_new_key_is_fetched_when_a_token_names_it_and_a_withdrawn_one_no_longer_counts(tmp_path: Path) -> None:
    path = key_set_file(tmp_path / "jwks.json", KEY)
    ring = await _ring(path)
    tokens = Tokens(config(jwks=str(path)), ring)
    old = signed(KEY, claims())
    await tokens.read(old)
    key_set_file(path, OTHER)
    await tokens.read(old)  # not known yet
    assert (await tokens.read(signed(OTHER, claims()))).session_id == "s-1"
    with pytest.raises(RefusedToken, match="unknown key"):
        await tokens.read(old)
    key_set_file(path, KEY)
    with pytest.raises(RefusedToken, match="unknown key"):  # asked for a moment ago
        await tokens.read(old)


async def test_what_cannot_be_read_leaves_the_keys_and_none_at_all_verify_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    ring = await _ring(path)
    assert ring.keys is None
    with pytest.raises(RefusedToken) as refused:
        await Tokens(config(jwks=str(path)), ring).read(signed(KEY, claims()))
    assert refused.value.unverified
    key_set_file(path, KEY)
    assert await ring.hurry()
    path.write_text("{")
    again = KeyRing(lambda: read_key_set(str(path)), str(path), 3_600)
    again.keys = ring.keys
    assert not await again.hurry()
    assert again.keys is not None


async def test_keys_are_read_anew_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    ring = KeyRing(lambda: read_key_set(str(path)), str(path), 0.01)
    await ring.start()
    try:
        for number, key in enumerate((KEY, OTHER), start=1):
            key_set_file(path, key)
            await until(lambda number=number: ring.generation == number)  # type: ignore[misc]  # a default binds it
    finally:
        await ring.stop()


def test_a_key_set_is_read_without_secrets_private_keys_and_keys_for_encryption(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    enc = ECKey.generate_key("P-256", {"kid": "enc", "use": "enc"})
    private = OTHER.as_dict(private=True)
    odd = {"kty": "EC", "crv": "P-999", "x": "AA", "y": "AA", "kid": "odd"}
    listed = [KEY.as_dict(private=False), enc.as_dict(private=False), private, SECRET.as_dict(), odd, {"kty": "new"}]
    path.write_bytes(orjson.dumps({"keys": listed}))
    assert [key.kid for key in read_key_set(str(path))] == ["one"]
    path.write_bytes(orjson.dumps({"keys": listed[1:]}))
    with pytest.raises(ValueError, match="no public key"):
        read_key_set(str(path))


class _Issuer(BaseHTTPRequestHandler):
    """Serves a key set at /jwks, what is too long at /long, and a redirect to it at /moved."""

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/moved" else 200)
        if self.path == "/moved":
            self.send_header("Location", "/jwks")
        self.end_headers()
        document = orjson.dumps({"keys": [KEY.as_dict(private=False)]})
        self.wfile.write(document.ljust(2_000_000) if self.path == "/long" else document)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_key_set_is_fetched_from_where_it_was_said_to_be_and_from_nowhere_else() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Issuer) as issuer:
        thread = threading.Thread(target=issuer.serve_forever)
        thread.start()
        try:
            at = f"http://127.0.0.1:{issuer.server_port}"
            assert [key.kid for key in read_key_set(f"{at}/jwks")] == ["one"]
            for path in ("moved", "long"):
                with pytest.raises((OSError, ValueError)):
                    read_key_set(f"{at}/{path}")
        finally:
            issuer.shutdown()
            thread.join()


@pytest.mark.parametrize(
    "key",
    [KEY, RSAKey.generate_key(2048), OKPKey.generate_key("Ed25519"), SECRET],
    ids=["EC", "RSA", "Ed25519", "secret"],
)
async def test_a_key_file_holds_any_kind_of_key(tmp_path: Path, key: Any) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET.raw_value if key is SECRET else key.as_pem(private=False))
    asking = await Asking(config(key_file=path)).keys()
    assert await asking.ask(bearer(signed(key, claims(), kid="whatever"))) == "passed"
    imposter = OTHER if key is SECRET else SECRET
    assert await asking.ask(bearer(signed(imposter, claims(sub="u-2"), kid="whatever"))) == "invalid"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"short", "below 32 bytes"),
        (OTHER.as_pem(private=True), "private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "neither"),
        (b"{}", "neither"),
    ],
)
def test_a_key_file_that_holds_no_key_is_refused_at_start(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=says):
        read_key(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_key(tmp_path / "none")


async def test_the_tokens_session_ends_as_the_services_know_it(tmp_path: Path) -> None:
    asking = await Asking(config(jwks=str(key_set_file(tmp_path / "k", KEY)), token_cookie="tok")).keys()
    token = signed(KEY, claims(auth_time=int(time.time()) - 60))
    for carried in (bearer(token), (b"cookie", f"a=b; tok={token}".encode())):
        assert await asking.ask(carried) == "passed"
    (touch,) = asking.touches()
    assert (touch.session, touch.subject) == (session_reference("s-1"), "u-1")
    assert touch.session_age_ms is not None
    assert 60_000 <= touch.session_age_ms < 120_000
    asking.feed.end(session_reference("s-1"), cause="absolute")
    assert await asking.ask(bearer(token)) == "absolute"


async def test_a_revocation_of_the_subject_needs_no_processor(tmp_path: Path) -> None:
    asking = await Asking(config(jwks=str(key_set_file(tmp_path / "k", KEY)), tenant_claim="org")).keys()
    token = signed(KEY, claims(org="acme", auth_time=1_700_000_000))
    assert await asking.ask(bearer(token)) == "passed"
    asking.feed.revoke(subject="u-1", tenant="acme")
    assert await asking.ask(bearer(token)) == "revoked"


def test_the_configuration_is_made_for_tokens() -> None:
    assert SidecarConfig(bootstrap_servers="k:1", jwks="x").takes_tokens
